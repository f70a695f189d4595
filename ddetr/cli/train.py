"""Train a detector.

CONFIG is a config file or the name of a shipped config (`ddetr configs` lists them). --data replaces the config's
datasets and classes by those of a dataset folder in COCO, VOC or YOLO format.
"""

import argparse

from ddetr.utils.cli import add_cfg_options, add_launcher


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command-line arguments."""
    parser.add_argument('config', metavar='CONFIG', help='config file or name')
    parser.add_argument('--data', metavar='DIR', help='dataset folder to train on')
    parser.add_argument('--work-dir', help='folder for logs and checkpoints (default: work_dirs/<config>)')
    parser.add_argument(
        '--resume',
        nargs='?',
        const='auto',
        help='resume from this training checkpoint (default: the last one in the work directory)',
    )
    parser.add_argument('--amp', action='store_true', help='use automatic mixed precision')
    parser.add_argument(
        '--amp-dtype',
        choices=('float16', 'bfloat16'),
        help="implies --amp (default: the config's, otherwise float16 on a GPU and bfloat16 on the CPU)",
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate with the batch size'
    )
    parser.add_argument(
        '--allow-partial', action='store_true', help='load only the matching weights of load_from'
    )
    add_cfg_options(parser)
    add_launcher(parser, 'see dist_train.sh')


def run(args: argparse.Namespace) -> None:
    """Train."""
    from ddetr.apis import TrainOptions, train_detector

    options = TrainOptions(**{key: getattr(args, key) for key in TrainOptions._fields})
    runner = train_detector(args.config, options)
    if runner.rank == 0:
        print(f'Run inference with the best checkpoint: ddetr predict IMAGES --checkpoint {runner.work_dir}')
