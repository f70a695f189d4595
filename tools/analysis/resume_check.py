"""Compare interrupted and resumed training runs with uninterrupted ones: `python tools/analysis/resume_check.py`.

Prints the largest absolute differences in the last checkpoint's weights, averaged weights, optimizer, schedules, record
of the best checkpoint, and in all logged values except times. Exits with status 1 unless all of them are 0.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from ddetr.analysis.resume_check import CASES, check_resume, data_options
from ddetr.utils.cli import run_cli
from ddetr.utils.progress import track
from ddetr.utils.tables import FORMATS, render_table

CONFIG = Path(__file__).parents[2] / 'tests' / 'configs' / 'tiny_shapes.py'


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', default=str(CONFIG), help="config (default: the tests' config)")
    parser.add_argument('--only', default='', help='run only cases whose name contains this text')
    parser.add_argument('--format', choices=FORMATS, default='markdown')
    args = parser.parse_args()
    rows, header, equal = [], ['interrupted'], True
    with tempfile.TemporaryDirectory() as folder:
        data = data_options(Path(folder))
        for case in track([case for case in CASES if args.only in case.name], 'cases', every_s=0):
            found = check_resume(args.config, data, case)
            header = ['interrupted', 'exit codes', *found.apart]
            codes = ' '.join(map(str, found.interrupted + found.resumed))
            rows.append([case.name, codes, *(f'{value:g}' for value in found.apart.values())])
            equal &= not any(found.apart.values())
    print(render_table(header, rows, args.format))
    if not equal:
        sys.exit('resumed training differs from uninterrupted training')


if __name__ == '__main__':
    run_cli(main)
