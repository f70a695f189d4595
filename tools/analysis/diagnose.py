"""Diagnose why AP stays at 0: check data, classes, weights, normalisation and learning rate of a config in minutes.

    python tools/analysis/diagnose.py my_config.py

The most likely cause comes first, with the measurements and the suggested change. The report and pictures of the
training images, as seen by the model, are written to one page. `--overfit` then trains on a few images, which should
reach an AP near 1.
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
    parser.add_argument('--checkpoint', help='trained weights, to check their detections on the data')
    parser.add_argument(
        '--out-dir', help='folder for the page and pictures (default: work_dirs/diagnosis_<config>)'
    )
    parser.add_argument(
        '--overfit',
        type=int,
        default=0,
        metavar='ITERATIONS',
        help='overfit a few images, for example for 600 iterations (default: 0)',
    )
    parser.add_argument(
        '--num-images', type=int, default=8, help='number of images to overfit (default: %(default)s)'
    )
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
