"""Evaluate a checkpoint: `python tools/test.py configs/...py work_dirs/.../epoch_50.pth`."""

import argparse

from ddetr.apis import EvalOptions, evaluate_detector
from ddetr.utils.cli import add_cfg_options, run_cli


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='weight file')
    parser.add_argument('--work-dir', help='folder of the logs; by default work_dirs/<config>')
    parser.add_argument('--out', help="write the detections to this .json file, in COCO's result format")
    parser.add_argument('--show-dir', help='draw ground truth and detections of every image into this folder')
    parser.add_argument('--score-thr', type=float, default=0.3, help='lowest score that --show-dir draws')
    parser.add_argument('--allow-partial', action='store_true', help='take of the checkpoint what fits')
    add_cfg_options(parser)
    parser.add_argument(
        '--launcher', choices=['none', 'pytorch', 'slurm', 'mpi'], default='none', help='see dist_test.sh'
    )
    parser.add_argument('--local_rank', '--local-rank', type=int, default=0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    options = EvalOptions(**{key: getattr(args, key) for key in EvalOptions._fields})
    evaluate_detector(args.config, args.checkpoint, options)


if __name__ == '__main__':
    run_cli(main)
