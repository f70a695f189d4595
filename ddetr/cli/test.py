"""Evaluate a checkpoint on a test set.

Without CONFIG, it is the one that the checkpoint was trained with, which training checkpoints carry. CHECKPOINT may be
a work directory: its best checkpoint is taken, else its last. It may be a file that `ddetr export` wrote: that needs
CONFIG or --data, for the test set.
"""

import argparse

from ddetr.utils.cli import add_cfg_options, add_launcher


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line's arguments."""
    parser.add_argument('config', metavar='CONFIG', nargs='?', help='config file, or name of one')
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', help='checkpoint, work directory, or exported file'
    )
    parser.add_argument('--data', metavar='DIR', help="folder of a dataset, in place of the config's")
    parser.add_argument('--work-dir', help='folder of the logs; by default work_dirs/<config>')
    parser.add_argument('--out', help="write the detections to this .json file, in COCO's result format")
    parser.add_argument('--show-dir', help='draw ground truth and detections of every image into this folder')
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score that --show-dir draws')
    parser.add_argument('--allow-partial', action='store_true', help='take of the checkpoint what fits')
    add_cfg_options(parser)
    add_launcher(parser, 'see dist_test.sh')


def run(args: argparse.Namespace) -> None:
    """Evaluate."""
    from ddetr.apis import EvalOptions, evaluate_detector

    options = EvalOptions(**{key: getattr(args, key) for key in EvalOptions._fields})
    evaluate_detector(args.config, args.checkpoint, options)
