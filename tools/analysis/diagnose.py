"""Why does AP stay 0? Check data, classes, weights, normalisation and learning rate of a config, in a few minutes.

    python tools/analysis/diagnose.py my_config.py

The likeliest cause comes first, with what was measured and what to change. Pictures of the training images, as the
model sees them, and the report are written to one page.
"""

import argparse
from pathlib import Path

from ddetr.analysis.diagnosis import diagnose, write_page
from ddetr.engine.config import load_config
from ddetr.utils.cli import add_cfg_options, run_cli


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--checkpoint', help='trained weights: what do they make of the data?')
    parser.add_argument('--out-dir', help='folder of page and pictures; by default work_dirs/diagnosis_<config>')
    add_cfg_options(parser)
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options)
    diagnosis, subject = diagnose(cfg, args.checkpoint, tell=lambda line: print(line, flush=True))
    page = write_page(diagnosis, subject, Path(args.out_dir or f'work_dirs/diagnosis_{Path(args.config).stem}'))
    print(f'\n{diagnosis}\n\npage with pictures: {page}')


if __name__ == '__main__':
    run_cli(main)
