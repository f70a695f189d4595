"""Measure speed and memory of a detector on this machine: `python tools/analysis/benchmark.py CONFIG`.

Measures inference with batch sizes 1 and 4, as in the paper's main table, and training with the config's batch size.
Reports images per second (from the median step), speed relative to the first row, interquartile range, memory of a
step, and device hours for an epoch of COCO. All forms, exported files and peers with one batch size alternate, so that
other load on the machine affects them equally; relative speeds are medians over the rounds. Images are already in
memory. Weights are random, which does not affect the speed, except of NMS.

    python tools/analysis/benchmark.py CONFIG --forms plain prepared compiled --peers transformers --limit
    python tools/analysis/benchmark.py CONFIG --forms plain amp prepared-bf16 --exported model.onnx
"""

import argparse
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from mmengine.runner import set_random_seed

from ddetr.analysis.batches import labelled_batch, random_batch
from ddetr.analysis.benchmark import FORMS, Contest, detection_steps, training_steps
from ddetr.analysis.building import build_detector
from ddetr.analysis.peers import PEERS
from ddetr.analysis.speed import COCO_TRAIN_IMAGES, Speed, device_name, measure_alternately
from ddetr.apis import list_images, prepare_image
from ddetr.engine.config import load_config
from ddetr.utils.cli import run_cli
from ddetr.utils.tables import FORMATS, render_table

HEADER = ('measured', 'batch', 'form', 'images/s', 'ms/step', 'speed', 'spread', 'step MiB', 'hours/epoch')


def main() -> None:
    args = parse_args()
    device = torch.device(args.device or ('cuda' if torch.cuda.is_available() else 'cpu'))
    set_random_seed(0)
    MMLogger.get_current_instance().setLevel('ERROR')  # the optimizer constructor logs every parameter
    cfg = load_config(args.config)
    model: Any = build_detector(cfg).to(device)
    model.cfg = cfg
    contest = Contest(model, cfg, tuple(args.forms), tuple(args.peers), tuple(args.exported), args.limit)
    rows = []
    for images in args.batch_sizes:
        steps = detection_steps(contest, make_batch(model, images, args))
        speeds = measure_alternately(steps, images, device, args.warmup, args.repeats, args.cpu_time)
        rows += [line_of('detection', name, speed) for name, speed in speeds.items()]
    train_batch = args.train_batch_size or cfg.train_dataloader.batch_size
    if train_batch > 0 and not args.no_training:
        steps = training_steps(contest, make_batch(model, train_batch, args))
        speeds = measure_alternately(steps, train_batch, device, args.warmup, args.repeats, args.cpu_time)
        rows += [line_of('training', name, speed) for name, speed in speeds.items()]
    what = f'images of {args.images}' if args.images else f'random images of {args.size[0]} x {args.size[1]}'
    print(f'{Path(args.config).stem} on {device_name(device)}, PyTorch {torch.__version__}; {what}; ', end='')
    print(f'{args.repeats} rounds after {args.warmup}{", CPU time" if args.cpu_time else ""}\n')
    print(render_table(HEADER, rows, args.format))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--forms',
        nargs='+',
        choices=FORMS,
        default=['plain'],
        help='amp: mixed precision, float16 on GPUs, bfloat16 on CPUs; prepared: see docs/inference.md; compiled: '
        'prepared with torch.compile. Training supports plain and amp (default: plain)',
    )
    parser.add_argument('--peers', nargs='*', choices=PEERS, default=[], help='detectors of other projects')
    parser.add_argument(
        '--exported', nargs='*', default=[], metavar='FILE', help='files written by `ddetr export`'
    )
    parser.add_argument(
        '--limit', action='store_true', help='also measure only the convolutions and linear layers'
    )
    parser.add_argument(
        '--size', nargs=2, type=int, default=(800, 1066), metavar=('H', 'W'), help='size of random images'
    )
    parser.add_argument(
        '--images', help='image or folder, resized by the test pipeline, instead of random images'
    )
    parser.add_argument('--batch-sizes', nargs='*', type=int, default=[1, 4], help='inference batch sizes')
    parser.add_argument(
        '--train-batch-size', type=int, help="training batch size (default: the config's, for one device)"
    )
    parser.add_argument('--no-training', action='store_true', help='measure only inference')
    parser.add_argument('--device', help='device (default: a GPU if available)')
    parser.add_argument('--warmup', type=int, default=3, help='number of unmeasured rounds')
    parser.add_argument('--repeats', type=int, default=10, help='number of measured rounds, at least 2')
    parser.add_argument(
        '--cpu-time',
        action='store_true',
        help='measure CPU time, for a single thread (OMP_NUM_THREADS=1) on a busy machine',
    )
    parser.add_argument('--format', choices=FORMATS, default='text')
    args = parser.parse_args()
    if args.repeats < 2:
        parser.error(f'--repeats {args.repeats}: quartiles need at least 2 rounds')
    return args


def make_batch(model: Any, images: int, args: argparse.Namespace) -> dict[str, list]:
    """Batch of random or given images, with random boxes for training; files repeat if there are too few."""
    num_classes = model.num_classes
    if not args.images:
        return random_batch(images, tuple(args.size), num_classes)
    files = list_images(args.images)
    chosen = [files[i % len(files)] for i in range(images)]
    return labelled_batch([prepare_image(model, file)['inputs'][0] for file in chosen], num_classes)


def line_of(kind: str, form: str, speed: Speed) -> tuple[str, ...]:
    """One row for `HEADER`."""
    return (
        kind,
        str(speed.images),
        form,
        f'{speed.images_per_s:.3g}',
        f'{speed.median_s * 1e3:.4g}',
        f'{speed.speed:.2f}',
        f'{speed.spread:.1%}',
        f'{speed.step_mib:.0f}',
        f'{speed.hours_per_epoch(COCO_TRAIN_IMAGES):.3g}' if kind == 'training' else '',
    )


if __name__ == '__main__':
    run_cli(main)
