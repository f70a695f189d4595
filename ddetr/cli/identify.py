"""Identify the model and format of a checkpoint, and the matching config."""

import argparse


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line arguments."""
    parser.add_argument('file', help='checkpoint, or Hugging Face folder')
    parser.add_argument(
        '--config',
        help='config of the detector; needed for custom detectors, imported through custom_imports',
    )


def run(args: argparse.Namespace) -> None:
    """Print the report."""
    from ddetr.analysis.building import build_detector
    from ddetr.engine.config import load_config
    from ddetr.weights import read_weights

    model = build_detector(load_config(args.config)) if args.config else None
    file = read_weights(args.file, model=model)
    weights, layout = file.weights, file.weights.layout
    values = sum(tensor.numel() for tensor in weights.state.values())
    dtypes = ', '.join(sorted({str(t.dtype).removeprefix('torch.') for t in weights.state.values()}))
    facts = {
        'format': weights.title,
        'model': layout,
        'tensors': f'{len(weights.state)} with ddetr names, {values / 1e6:.1f} M values, {dtypes}',
        'classes': ', '.join(file.classes) if file.classes else '',
        'trained': ', '.join(f'{key} {file.meta[key]}' for key in ('epoch', 'iter') if key in file.meta),
        'notes': '; '.join(weights.notes),
        'unexpected': ', '.join(weights.unexpected),
        'missing': ', '.join(weights.missing_in_layers()),
        'config': ' or '.join(layout.fitting_configs()),
    }
    if facts['config']:
        facts['with'] = ' '.join(f'{key}={value}' for key, value in layout.config_changes().items())
    if weights.family and weights.family.part_of_detector:
        part = weights.family.part_of_detector
        facts['config'] = f"model.{part}init_cfg=dict(type='Pretrained', checkpoint='{args.file}')"
    for name, fact in facts.items():
        if fact:
            print(f'{name + ":":11}{fact}')
