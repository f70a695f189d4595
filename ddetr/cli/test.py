"""Evaluate a checkpoint on a test set.

CONFIG defaults to the config stored in the training checkpoint. CHECKPOINT may be a work directory, whose best (or
else last) checkpoint is used, or a file written by `ddetr export`, which needs CONFIG or --data for the test set.
"""

import argparse

from ddetr.utils.cli import add_cfg_options, add_launcher


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line arguments."""
    parser.add_argument('config', metavar='CONFIG', nargs='?', help='config file or name')
    parser.add_argument(
        'checkpoint', metavar='CHECKPOINT', help='checkpoint, work directory or exported file'
    )
    parser.add_argument('--data', metavar='DIR', help="dataset folder, instead of the config's test set")
    parser.add_argument('--work-dir', help='folder for logs (default: work_dirs/<config>)')
    parser.add_argument('--out', help='write the detections to this .json file, in COCO result format')
    parser.add_argument('--show-dir', help='draw ground truth and detections of every image to this folder')
    parser.add_argument(
        '--score-thr', type=float, default=0.3, help='minimum score drawn by --show-dir (default: 0.3)'
    )
    parser.add_argument('--allow-partial', action='store_true', help='load only the matching weights')
    add_cfg_options(parser)
    add_launcher(parser, 'see dist_test.sh')


def run(args: argparse.Namespace) -> None:
    """Evaluate."""
    from ddetr.apis import EvalOptions, evaluate_detector

    options = EvalOptions(**{key: getattr(args, key) for key in EvalOptions._fields})
    evaluate_detector(args.config, args.checkpoint, options)
