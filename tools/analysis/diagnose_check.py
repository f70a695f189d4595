"""Test the diagnosis: break a working set-up in six ways and diagnose each of them.

    python tools/analysis/diagnose_check.py my_config.py --only shuffled lr

The training annotations must be in COCO format. The table shows the first cause named for each.
"""

import argparse
import tempfile
import time
from pathlib import Path

from ddetr.analysis.diagnosis import diagnose
from ddetr.analysis.diagnosis.sabotage import SABOTAGES, sabotaged
from ddetr.engine.config import load_config
from ddetr.utils.cli import add_cfg_options, run_cli
from ddetr.utils.tables import FORMATS, render_table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file of a working set-up')
    parser.add_argument(
        '--only', nargs='+', choices=SABOTAGES, default=list(SABOTAGES), help='run only these'
    )
    parser.add_argument(
        '--format', choices=FORMATS, default='text', help='table format (default: %(default)s)'
    )
    add_cfg_options(parser)
    args = parser.parse_args()
    rows, missed = [], 0
    for name in args.only:
        cfg = load_config(args.config, args.cfg_options)
        start = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            diagnosis, _ = diagnose(sabotaged(cfg, name, Path(folder)))
        seconds = time.perf_counter() - start
        expected = SABOTAGES[name]
        first = diagnosis.causes[0] if diagnosis.causes else None
        right = (first.name if first else '') == expected
        missed += not right
        print(f'== {name}\n{diagnosis}\n', flush=True)
        named = first.title if first else 'no cause'
        rows.append([name, 'yes' if right else 'NO', f'{seconds:.0f}', named])
    print(render_table(['set-up', 'right first', 'seconds', 'named first'], rows, args.format))
    if missed:
        raise SystemExit(1)


if __name__ == '__main__':
    run_cli(main)
