"""Export configs with random weights to ONNX and compare with PyTorch: the table in docs/deployment.md.

    python tools/deployment/export_table.py            # all shipped configs
    python tools/deployment/export_table.py dino-4scale_r50_8xb2-12e_coco detr_r50_8xb2-150e_coco

Each export is verified on a single image and on a batch of two with other sizes. Configs that differ only in data or
schedule have one row. Exits with status 1 if any export fails.
"""

import argparse
import sys
from pathlib import Path

from ddetr.analysis.exports import export_config
from ddetr.deployment import ExportOptions
from ddetr.engine.config import load_config
from ddetr.utils import InputError
from ddetr.utils.cli import run_cli
from ddetr.utils.progress import track
from ddetr.utils.shipped_configs import find_config, list_configs
from ddetr.utils.tables import FORMATS, render_table

HEADER = ('config', 'batches', 'detections', 'score', 'pixels', 'undecided', 'MiB', 'seconds')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('configs', nargs='*', metavar='CONFIG', help='configs (default: all shipped ones)')
    parser.add_argument('--to', default='onnx', help='export target (default: onnx)')
    parser.add_argument(
        '--sizes', nargs=3, default=('256x320', '288x224', '320x256'), metavar='HxW', help='image sizes'
    )
    parser.add_argument('--format', choices=FORMATS, default='markdown')
    args = parser.parse_args()
    sizes = [(int(height), int(width)) for height, width in (size.split('x') for size in args.sizes)]
    configs = [find_config(name) for name in args.configs] or list(list_configs().values())
    rows, failed = [], []
    for config, *same in track(group_by_model(configs), 'models', every_s=0):
        try:
            row = export_config(config, args.to, sizes, ExportOptions())
        except InputError as error:
            failed.append(f'{config.stem}: {error}')
            continue
        proof = row.proof
        figures = (f'{proof.score:.0e}', f'{proof.box_px:.0e}', str(proof.undecided))
        cells = (', '.join(proof.shapes), str(proof.detections), *figures)
        names = ', '.join([row.config, *(other.stem for other in same)])
        rows.append((names, *cells, f'{row.mib:.0f}', f'{row.seconds:.0f}'))
    print(render_table(HEADER, rows, args.format))
    if failed:
        sys.exit('\n'.join(failed))


def group_by_model(configs: list[Path]) -> list[list[Path]]:
    """Put configs with equal `model` together; the order is that of their first ones."""
    groups: dict[str, list[Path]] = {}
    for config in configs:
        groups.setdefault(repr(load_config(config).model.to_dict()), []).append(config)
    return list(groups.values())


if __name__ == '__main__':
    run_cli(main)
