"""Why does AP stay 0? Check data, classes, weights, normalisation and learning rate of a config, in a few minutes.

    python tools/analysis/diagnose.py my_config.py

The likeliest cause comes first, with what was measured and what to change. Pictures of the training images, as the
model sees them, and the report are written to one page. With `--overfit` a training on a few images follows, which ends
near an AP of 1 where everything is right.
"""

import argparse
from pathlib import Path

from ddetr.analysis.diagnosis import diagnose, write_page
from ddetr.analysis.diagnosis.overfitting import overfit
from ddetr.engine.config import load_config
from ddetr.utils.cli import add_cfg_options, run_cli


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--checkpoint', help='trained weights: what do they make of the data?')
    parser.add_argument(
        '--out-dir', help='folder of page and pictures; by default work_dirs/diagnosis_<config>'
    )
    parser.add_argument(
        '--overfit', type=int, default=0, metavar='ITERATIONS', help='such as 600; by default 0'
    )
    parser.add_argument('--num-images', type=int, default=8, help='to overfit (default: %(default)s)')
    add_cfg_options(parser)
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options)
    diagnosis, subject = diagnose(cfg, args.checkpoint, tell=lambda line: print(line, flush=True))
    folder = Path(args.out_dir or f'work_dirs/diagnosis_{Path(args.config).stem}')
    print(f'\n{diagnosis}\n\npage with pictures: {write_page(diagnosis, subject, folder)}')
    if args.overfit:
        result = overfit(cfg, args.num_images, args.overfit, folder / 'overfit')
        print(
            f'after {args.overfit} iterations on {args.num_images} images: AP {result.ap:.3f} on the same images; '
            f'pictures in {result.pictures}'
        )


if __name__ == '__main__':
    run_cli(main)
