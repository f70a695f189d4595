"""Train a detector: `python tools/train.py configs/...py`."""

import argparse

from ddetr.apis import TrainOptions, train_detector
from ddetr.engine.optim_wrapper import DTYPES
from ddetr.utils.cli import add_cfg_options, run_cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
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
        choices=DTYPES,
        help="with or in place of --amp; by default the config's, else float16 on a GPU and bfloat16 on the CPU",
    )
    parser.add_argument(
        '--auto-scale-lr', action='store_true', help='scale the learning rate by the batch size'
    )
    parser.add_argument('--allow-partial', action='store_true', help='take of load_from what fits')
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='see dist_train.sh'
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    options = TrainOptions(**{key: getattr(args, key) for key in TrainOptions._fields})
    train_detector(args.config, options)


if __name__ == '__main__':
    run_cli(main)
