"""Train a detector.

CONFIG is a config file, or the name of one that comes with ddetr (`ddetr configs` lists them). With --data, the
config's datasets and classes are replaced by those of a folder in COCO's, VOC's or YOLO's format.
"""

import argparse

from ddetr.utils.cli import add_cfg_options, add_launcher


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command line's arguments."""
    parser.add_argument('config', metavar='CONFIG', help='config file, or name of one')
    parser.add_argument('--data', metavar='DIR', help='folder of a dataset to train on')
    parser.add_argument('--work-dir', help='folder of logs and checkpoints; by default work_dirs/<config>')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help="go on from this training checkpoint; the work dir's last if none is named",
    )
    parser.add_argument('--amp', action='store_true', help='mixed precision')
    parser.add_argument(
        '--amp-dtype',
        choices=('float16', 'bfloat16'),
        help="with or in place of --amp; by default the config's, else float16 on a GPU and bfloat16 on the CPU",
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate by the batch size'
    )
    parser.add_argument('--allow-partial', action='store_true', help='take of load_from what fits')
    add_cfg_options(parser)
    add_launcher(parser, 'see dist_train.sh')


def run(args: argparse.Namespace) -> None:
    """Train."""
    from ddetr.apis import TrainOptions, train_detector

    options = TrainOptions(**{key: getattr(args, key) for key in TrainOptions._fields})
    runner = train_detector(args.config, options)
    if runner.rank == 0:
        print(f'To use the best checkpoint: ddetr predict IMAGES --checkpoint {runner.work_dir}')
