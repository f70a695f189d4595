"""Plot one curve of several runs: `python tools/analysis/compare_curves.py NAME=work_dirs/A work_dirs/B`."""

import argparse
from pathlib import Path

from ddetr.utils.cli import run_cli
from ddetr.visualization.curves import draw_comparison


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        'runs', nargs='+', help='work directories, as NAME=FOLDER or FOLDER; NAME appears in the legend'
    )
    parser.add_argument('--key', default='coco/bbox_mAP', help='logged scalar (default: %(default)s)')
    parser.add_argument(
        '--out', default='comparison.png', help='.png, .pdf or .svg file (default: %(default)s)'
    )
    args = parser.parse_args()
    named = [run.split('=', 1) if '=' in run else (Path(run).name, run) for run in args.runs]
    work_dirs = dict(named)
    if len(work_dirs) < len(named):
        parser.error('two runs have the same name: pass them as NAME=FOLDER')
    print(draw_comparison(work_dirs, args.key, args.out))


if __name__ == '__main__':
    run_cli(main)
