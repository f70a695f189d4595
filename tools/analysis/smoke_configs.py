"""Train, test and draw with every system of the table, very briefly: `python tools/analysis/smoke_configs.py`.

Shows that each config works from training to pictures, at a reduced size and without pretrained weights; the AP
says nothing. Exits with status 1 if the loss of any of them did not fall.
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
        'configs', nargs='*', type=Path, metavar='CONFIG', help='by default the ten of the table'
    )
    parser.add_argument('--data-root', default='data/coco', help="data in COCO's layout")
    parser.add_argument(
        '--size', nargs=2, type=int, default=(192, 128), metavar=('W', 'H'), help='images are made to fit'
    )
    parser.add_argument('--iterations', type=int, default=20)
    parser.add_argument('--images', type=int, default=4, help='to train on, and to test')
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
        sys.exit('the loss did not fall everywhere')


if __name__ == '__main__':
    run_cli(main)
