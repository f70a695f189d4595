"""Compare padding and training speed of the config's batches with those of `SimilarSizeBatchSampler`.

    python tools/analysis/padding.py configs/quickstart/deformable-detr-refine-twostage_small_coco.py --batch-sizes 2 4

Images come from the config's loader with its augmentation. The fraction of padding is measured over complete epochs of
the training set. Speed is measured for training steps only, without loading and with random weights; both samplers
alternate. Because they see different images, unpadded pixels per second is the more precise comparison.
"""

import argparse
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from mmengine.config import Config
from mmengine.logging import MMLogger
from mmengine.runner import Runner, set_random_seed

from ddetr.analysis.building import build_detector
from ddetr.analysis.speed import training_step
from ddetr.engine.config import load_config
from ddetr.utils.cli import add_cfg_options, run_cli
from ddetr.utils.tables import FORMATS, render_table

SIMILAR = {'type': 'SimilarSizeBatchSampler'}
HEADER = ('batch', 'batches', 'padded', 'images/s', 'Mpixel/s')


class Rate(NamedTuple):
    """Training speed with one kind of batches, per second."""

    images: float
    pixels: float  # unpadded pixels


def main() -> None:
    args = parse_args()
    set_random_seed(0)
    MMLogger.get_current_instance().setLevel('ERROR')
    cfg = load_config(args.config, args.cfg_options)
    model = build_detector(cfg)
    rows = []
    for batch_size in args.batch_sizes:
        given = cfg.train_dataloader.get('batch_sampler')
        kinds = {'of the config': given, 'of similar size': SIMILAR}
        loaders = {kind: build_loader(cfg, sampler, batch_size) for kind, sampler in kinds.items()}
        rates = training_rates(cfg, model, loaders, args.steps)
        for kind, loader in loaders.items():
            rate, padded = rates[kind], padded_share(loader, args.epochs)
            rows.append(
                (str(batch_size), kind, f'{padded:.1%}', f'{rate.images:.3g}', f'{rate.pixels / 1e6:.3g}')
            )
    print(render_table(HEADER, rows, args.format))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument(
        '--batch-sizes', nargs='+', type=int, default=[2, 4], help='batch sizes (default: 2 4)'
    )
    parser.add_argument(
        '--epochs', type=int, default=4, help='epochs to measure padding (default: %(default)s)'
    )
    parser.add_argument(
        '--steps', type=int, default=20, help='timed steps of each kind (default: %(default)s)'
    )
    parser.add_argument('--format', choices=FORMATS, default='text')
    add_cfg_options(parser)
    return parser.parse_args()


def build_loader(cfg: Config, batch_sampler: dict | None, batch_size: int) -> Any:
    """Build the config's training loader with another batch sampler and batch size."""
    loader = {**cfg.train_dataloader, 'batch_size': batch_size, 'batch_sampler': batch_sampler}
    if batch_sampler:
        loader['batch_sampler'] = {'drop_last': loader.pop('drop_last', False), **batch_sampler}
    return Runner.build_dataloader(loader, seed=0)


def epochs_of(loader: Any) -> Iterator[Any]:
    """Yield batches endlessly, epoch by epoch."""
    epoch = 0
    while True:
        loader.batch_sampler.sampler.set_epoch(epoch)
        yield from loader
        epoch += 1


def padded_share(loader: Any, epochs: int) -> float:
    """Fraction of padding pixels in all batches."""
    batches = epochs_of(loader)
    used = total = 0
    for _ in range(epochs * len(loader)):
        sizes = sizes_of(next(batches))
        used += sizes.prod(1).sum()
        total += len(sizes) * sizes.max(0).prod()
    return 1 - used / total


def sizes_of(batch: Any) -> np.ndarray:
    """(h, w) of each image, (B, 2)."""
    return np.array([image.shape[-2:] for image in batch['inputs']])


def training_rates(cfg: Config, model: Any, loaders: dict[str, Any], steps: int) -> dict[str, Rate]:
    """Measure training speed in CPU time, or wall-clock time on a GPU, after one warm-up step."""
    clock = time.perf_counter if next(model.parameters()).is_cuda else time.process_time
    batches = {kind: epochs_of(loader) for kind, loader in loaders.items()}
    totals = {kind: np.zeros(3) for kind in loaders}  # images, pixels, seconds
    for i in range(steps + 1):
        for kind in loaders:
            batch = next(batches[kind])
            sizes = sizes_of(batch)
            step = training_step(model, batch, cfg, amp=False)
            start = clock()
            step()
            seconds = clock() - start
            if i:
                totals[kind] += len(sizes), sizes.prod(1).sum(), seconds
    return {kind: Rate(images / s, pixels / s) for kind, (images, pixels, s) in totals.items()}


if __name__ == '__main__':
    run_cli(main)
