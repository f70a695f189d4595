"""Say what a weight file is and which config fits it: `python tools/converters/identify.py FILE`."""

import argparse

from ddetr.engine.weights import fitting_configs, missing_in_layers, read_weights
from ddetr.utils.cli import run_cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('file', help='weight file, or folder from Hugging Face')
    args = parser.parse_args()
    file = read_weights(args.file)
    weights, layout = file.weights, file.weights.layout
    values = sum(tensor.numel() for tensor in weights.state.values())
    dtypes = ', '.join(sorted({str(t.dtype).removeprefix('torch.') for t in weights.state.values()}))
    facts = {
        'format': weights.title,
        'model': layout,
        'tensors': f'{len(weights.state)} under our names, {values / 1e6:.1f} M values, {dtypes}',
        'classes': ', '.join(file.classes) if file.classes else None,
        'trained': ', '.join(f'{key} {file.meta[key]}' for key in ('epoch', 'iter') if key in file.meta)
        or None,
        'notes': '; '.join(weights.notes) or None,
        'left over': ', '.join(weights.unexpected) or None,
        'missing': ', '.join(missing_in_layers(weights.state)) or None,
        'config': ' or '.join(fitting_configs(layout)) or None,
    }
    if weights.project == 'torchvision' and not fitting_configs(layout):
        facts['config'] = f"model.backbone.init_cfg=dict(type='Pretrained', checkpoint='{args.file}')"
    for name, fact in facts.items():
        if fact is not None:
            print(f'{name + ":":11}{fact}')


if __name__ == '__main__':
    run_cli(main)
