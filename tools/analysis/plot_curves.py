"""Plot the curves of a training run: `python tools/analysis/plot_curves.py work_dirs/NAME`."""

import argparse
from pathlib import Path

from ddetr.utils.cli import run_cli
from ddetr.visualization.curves import draw_curves


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('work_dir', help='work directory of the training run')
    parser.add_argument(
        '--keys', nargs='+', default=['loss', 'coco/bbox_mAP'], help='logged scalars (default: %(default)s)'
    )
    parser.add_argument('--out', help='.png, .pdf or .svg file (default: WORK_DIR/curves.png)')
    args = parser.parse_args()
    print(draw_curves(args.work_dir, args.keys, args.out or Path(args.work_dir, 'curves.png')))


if __name__ == '__main__':
    run_cli(main)
