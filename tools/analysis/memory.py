"""Measure memory and time of a training step with and without activation checkpointing.

    python tools/analysis/memory.py configs/deformable_detr/deformable-detr_r50_16xb2-50e_coco.py

Each variant trains on random images in a separate process. Variants alternate, so that varying load on the machine
affects them equally. The time is the median over all steps. The peak is PyTorch's largest allocation on a GPU, or the
peak resident memory on the CPU, including interpreter, weights and optimizer. On the CPU, glibc's allocator would keep
varying amounts of freed memory, so the processes run with MALLOC_MMAP_THRESHOLD_=1048576, unless already set, which
returns tensors of 1 MiB and more immediately.
"""

import argparse
import multiprocessing
import os
import statistics
from collections.abc import Mapping
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import set_random_seed

from ddetr.analysis.batches import random_batch
from ddetr.analysis.building import build_detector
from ddetr.analysis.speed import Speed, device_name, measure, training_step
from ddetr.engine.config import load_config
from ddetr.utils.cli import add_cfg_options, run_cli
from ddetr.utils.progress import track
from ddetr.utils.tables import FORMATS, render_table

PARTS = ('backbone', 'encoder', 'decoder')
HEADER = ('checkpointed', 'peak MiB', 'of without', 's/step', 'of without')


class Case(NamedTuple):
    """Measurement to run in one process."""

    config: str
    options: Mapping[str, Any]  # --cfg-options
    images: int  # batch size
    size: tuple[int, int]  # image size (h, w)
    device: str
    repeats: int
    amp: bool


def main() -> None:
    args = parse_args()
    os.environ.setdefault('MALLOC_MMAP_THRESHOLD_', str(2**20))  # applies to new processes
    cfg = load_config(args.config, args.cfg_options)
    present = [part for part in PARTS if part in cfg.model]
    variants = {'nothing': [], **({part: [part] for part in present} if args.each else {}), 'all': present}
    device = args.device or ('cuda' if torch.cuda.is_available() else 'cpu')
    common = (args.batch_size, tuple(args.size), device, args.repeats, args.amp)
    cases = {
        name: Case(args.config, {**(args.cfg_options or {}), **checkpointing_options(cfg, parts)}, *common)
        for name, parts in variants.items()
    }
    turns = [name for _ in range(args.rounds) for name in cases]
    results = [(name, run_alone(cases[name])) for name in track(turns, 'measuring')]
    height, width = args.size
    print(
        f'{Path(args.config).stem} on {device_name(torch.device(device))}, PyTorch {torch.__version__}, '
        f'{"mixed precision" if args.amp else "float32"}; {args.batch_size} x {height} x {width}; '
        f'{args.rounds} x {args.repeats} steps\n'
    )
    found = {name: [speed for other, speed in results if other == name] for name in cases}
    print(render_table(HEADER, lines_of(found), args.format))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--size', nargs=2, type=int, default=(800, 1066), metavar=('H', 'W'), help='image size'
    )
    parser.add_argument('--batch-size', type=int, default=1, help='batch size (default: %(default)s)')
    parser.add_argument(
        '--each', action='store_true', help=f'also checkpoint each of {", ".join(PARTS)} separately'
    )
    parser.add_argument('--rounds', type=int, default=3, help='rounds per variant (default: %(default)s)')
    parser.add_argument(
        '--repeats', type=int, default=3, help='measured steps per round, at least 2 (default: 3)'
    )
    parser.add_argument('--amp', action='store_true', help='use automatic mixed precision')
    parser.add_argument('--device', help='device (default: a GPU if available)')
    parser.add_argument('--format', choices=FORMATS, default='text')
    add_cfg_options(parser)
    args = parser.parse_args()
    if args.repeats < 2:
        parser.error(f'--repeats {args.repeats}: quartiles need at least 2 steps')
    return args


def checkpointing_options(cfg: Config, parts: list[str]) -> dict[str, Any]:
    """`--cfg-options` that checkpoint all layers of the given parts of a model."""
    return {
        f'model.{part}.with_cp' if part == 'backbone' else f'model.{part}.num_cp': (
            True if part == 'backbone' else cfg.model[part].num_layers
        )
        for part in parts
    }


def run_alone(case: Case) -> Speed:
    """Run `train_steps` in a new process."""
    with ProcessPoolExecutor(1, multiprocessing.get_context('spawn')) as process:
        return process.submit(train_steps, case).result()


def train_steps(case: Case) -> Speed:
    """Train on one random batch with the config's optimizer."""
    MMLogger.get_current_instance().setLevel('ERROR')
    set_random_seed(0)
    cfg = load_config(case.config, case.options)
    device = torch.device(case.device)
    model = build_detector(cfg).to(device)
    batch = random_batch(case.images, case.size, model.num_classes)
    return measure(training_step(model, batch, cfg, case.amp), case.images, device, 1, case.repeats)


def lines_of(found: Mapping[str, list[Speed]]) -> list[tuple[str, ...]]:
    """Rows for `HEADER`; the other variants are compared with the first."""
    medians = {
        name: (max(s.peak_mib for s in speeds), statistics.median(s.median_s for s in speeds))
        for name, speeds in found.items()
    }
    base_mib, base_s = next(iter(medians.values()))
    return [
        (name, f'{mib:.0f}', f'{mib / base_mib:.0%}', f'{seconds:.3g}', f'{seconds / base_s:.2f}')
        for name, (mib, seconds) in medians.items()
    ]


if __name__ == '__main__':
    run_cli(main)
