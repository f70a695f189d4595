"""Smoke test of all models in the paper's table: `python tools/analysis/smoke_configs.py`.

Checks that each config trains, tests and draws detections, at a reduced size and without pretrained weights; the AP is
not meaningful. Exits with status 1 unless all losses decrease.
"""

import argparse
import sys
from pathlib import Path

from ddetr.analysis.paper_table import PUBLISHED
from ddetr.analysis.smoke import smoke_run
from ddetr.utils.cli import run_cli
from ddetr.utils.progress import track
from ddetr.utils.tables import FORMATS, render_table

CONFIGS = Path(__file__).parents[2] / 'configs'
HEADER = ('config', 'first loss', 'last loss', 'images tested', 'AP', 'pictures')


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'configs', nargs='*', type=Path, metavar='CONFIG', help="configs (default: the paper's ten models)"
    )
    parser.add_argument('--data-root', default='data/coco', help='data in COCO layout')
    parser.add_argument(
        '--size', nargs=2, type=int, default=(192, 128), metavar=('W', 'H'), help='maximum image size'
    )
    parser.add_argument('--iterations', type=int, default=20)
    parser.add_argument('--images', type=int, default=4, help='number of training and of test images')
    parser.add_argument('--format', choices=FORMATS, default='markdown')
    args = parser.parse_args()
    configs = args.configs or [next(CONFIGS.rglob(f'{row.config}.py')) for row in PUBLISHED]
    rows, fell = [], True
    for config in track(configs, 'configs', every_s=0):
        run = smoke_run(config, args.data_root, tuple(args.size), args.iterations, args.images)
        fell &= run.last_loss < run.first_loss
        losses = (f'{run.first_loss:.3f}', f'{run.last_loss:.3f}')
        rows.append((config.stem, *losses, str(run.tested), f'{run.ap:.3f}', str(run.pictures)))
    print(render_table(HEADER, rows, args.format))
    if not fell:
        sys.exit('not all losses decreased')


if __name__ == '__main__':
    run_cli(main)
