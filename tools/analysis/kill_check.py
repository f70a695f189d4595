"""Kill a small training run at random times and resume it: `python tools/analysis/kill_check.py`.

After every signal, the latest checkpoint is read and training is resumed. For every completed run, prints the signals
and the largest difference between its last checkpoint and that of an uninterrupted run. Exits with status 1 unless all
differences are 0.
"""

import argparse
import random
import signal
import sys
import tempfile
from pathlib import Path

from ddetr.analysis.kill_check import check_kills
from ddetr.analysis.resume_check import data_options
from ddetr.utils.cli import run_cli
from ddetr.utils.tables import FORMATS, render_table

CONFIG = Path(__file__).parents[2] / 'tests' / 'configs' / 'tiny_shapes.py'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', default=str(CONFIG), help="config (default: the tests' config)")
    parser.add_argument('--kill', type=int, default=50, help='number of SIGKILLs')
    parser.add_argument('--term', type=int, default=20, help='number of SIGTERMs')
    parser.add_argument('--seed', type=int, default=0)
    parser.add_argument('--format', choices=FORMATS, default='markdown')
    args = parser.parse_args()
    numbers = [int(signal.SIGKILL)] * args.kill + [int(signal.SIGTERM)] * args.term
    random.Random(args.seed).shuffle(numbers)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        found = check_kills(args.config, data_options(folder), folder, numbers, args.seed)
    header = ['training', 'killed', 'saved and ended', *found[0].apart]
    rows = [
        [str(n), str(one.killed), str(one.saved), *(f'{value:g}' for value in one.apart.values())]
        for n, one in enumerate(found, 1)
    ]
    print(render_table(header, rows, args.format))
    if any(value for one in found for value in one.apart.values()):
        sys.exit('resumed training differs from uninterrupted training')


if __name__ == '__main__':
    run_cli(main)
