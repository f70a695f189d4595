"""Compare training with one large batch and with the same batch split up: `python tools/analysis/batch_check.py`.

Trains each config on the same images in the same order with 4 images per update: in one batch, on 2 processes x 2, in 2
and 4 accumulated batches, and on 2 processes x 2 accumulated batches, in float64 and without dropout. A third of the
images are empty. Prints the norm of the difference of the final weights, relative to the weights and to their total
change. Exits with status 1 if the latter exceeds 1e-6 for any config.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from ddetr.analysis.batch_check import PARTS, WHOLE, apart, data_options, train_parts
from ddetr.utils.cli import run_cli
from ddetr.utils.progress import track
from ddetr.utils.tables import FORMATS, render_table

CONFIGS = Path(__file__).parents[2] / 'configs' / 'quickstart'
HEADER = ('config', 'updates from', 'of the weights', 'of their change')
LARGEST = 1e-6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        'configs', nargs='*', type=Path, metavar='CONFIG', help='configs (default: those of the quickstart)'
    )
    parser.add_argument('--images', type=int, default=20, help='number of images, a multiple of 4')
    parser.add_argument('--epochs', type=int, default=4)
    parser.add_argument('--format', choices=FORMATS, default='markdown')
    args = parser.parse_args()
    rows, equal = [], True
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = data_options(folder, args.images)
        for config in track(args.configs or sorted(CONFIGS.glob('*_shapes.py')), 'configs', every_s=0):
            whole = train_parts(str(config), data, WHOLE, args.epochs, folder / config.stem / 'whole')
            for number, layout in enumerate(PARTS):
                work_dir = folder / config.stem / str(number)
                found = apart(train_parts(str(config), data, layout, args.epochs, work_dir), whole)
                rows.append((config.stem, str(layout), *(f'{value:.1e}' for value in found)))
                equal &= found[1] <= LARGEST
    print(render_table(HEADER, rows, args.format))
    if not equal:
        sys.exit(f'the weights differ by more than {LARGEST} of their total change')


if __name__ == '__main__':
    run_cli(main)
