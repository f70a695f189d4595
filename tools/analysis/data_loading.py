"""Measure data loading speed and memory of a config's training images, epoch by epoch.

    python tools/analysis/data_loading.py CONFIG --ranks 2 --num-workers 4 --delay-ms 20
    python tools/analysis/data_loading.py CONFIG --ranks 2 --num-workers 4 --delay-ms 20 \
        --cfg-options train_dataloader.dataset.cache_mode=True

    python tools/analysis/data_loading.py CONFIG --parts 128

The config's loader runs without a model, in as many processes as training on one machine would use. `--delay-ms` delays
each image read to simulate a slow file system. Memory is the total of all processes after the epoch (proportional set
size from /proc, which counts shared pages once), and of the image cache. `--parts` measures each step of the pipeline
separately, in this process and on one core.
"""

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import torch.multiprocessing
from mmengine import fileio
from mmengine.config import Config
from mmengine.dist import all_gather_object, barrier
from mmengine.registry import init_default_scope
from mmengine.runner import Runner
from mmengine.utils.dl_utils import set_multi_processing

from ddetr.analysis.examples import build_dataset
from ddetr.engine.config import check_config, dataset_of, load_config
from ddetr.registry import SCOPE
from ddetr.utils.cli import add_cfg_options, run_cli
from ddetr.utils.seeding import seeded
from ddetr.utils.tables import FORMATS, render_table

PARTS_HEADER = ('step', 'ms/image', 'share', 'images/s')
HEADER = ('epoch', 'images', 's', 'images/s', 'padded', 'MiB', 'of them cached')


class Epoch(NamedTuple):
    """Measurements of one rank in one epoch."""

    images: int
    seconds: float
    pixels: int  # pixels of the images
    padded_pixels: int  # pixels of the padded batches
    memory: int  # proportional set size of the rank and its workers, in bytes
    cached: int  # size of the image cache shared by all ranks, in bytes


def main() -> None:
    args = parse_args()
    cfg = load_config(args.config, args.cfg_options)
    check_config(cfg)
    if args.parts:
        print(render_table(PARTS_HEADER, time_parts(cfg, args.parts), args.format))
        return
    if args.num_workers is not None:
        workers = {'num_workers': args.num_workers, 'persistent_workers': args.num_workers > 0}
        cfg.train_dataloader.update(workers)
    with tempfile.TemporaryDirectory() as folder:
        cfg.dump(Path(folder, 'config.py'))
        torch.multiprocessing.spawn(load_epochs, (folder, args), nprocs=args.ranks)
        saved = torch.load(Path(folder, 'epochs.pt'))
    epochs = [[Epoch(*values) for values in ranks] for ranks in saved]
    print(render_table(HEADER, [line_of(i, ranks) for i, ranks in enumerate(epochs)], args.format))


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', help='config file')
    parser.add_argument('--epochs', type=int, default=2, help='number of epochs (default: %(default)s)')
    parser.add_argument('--ranks', type=int, default=1, help='number of processes (default: %(default)s)')
    parser.add_argument('--num-workers', type=int, help="workers per rank (default: the config's)")
    parser.add_argument(
        '--delay-ms', type=float, default=0.0, help='delay before each file read (default: 0)'
    )
    parser.add_argument('--parts', type=int, metavar='N', help='time each pipeline step on N images instead')
    parser.add_argument('--format', choices=FORMATS, default='text')
    add_cfg_options(parser)
    return parser.parse_args()


def time_parts(cfg: Config, images: int) -> list[tuple[str, ...]]:
    """Rows for `PARTS_HEADER`: CPU time of each step of the training pipeline on `images` images."""
    import cv2

    cv2.setNumThreads(0)
    init_default_scope(SCOPE)
    dataset = build_dataset({**dataset_of(cfg.train_dataloader), 'serialize_data': False})
    names = [type(step).__name__ for step in dataset.pipeline.transforms]
    seconds = [0.0] * len(names)
    with seeded(0):
        for number in range(images):
            results: Any = dataset.get_data_info(number % len(dataset))
            for i, step in enumerate(dataset.pipeline.transforms):
                start = time.process_time()
                results = step(results)
                seconds[i] += time.process_time() - start
                if results is None:  # the image was rejected
                    break
    total = sum(seconds)
    rows = [
        (
            name,
            f'{1e3 * spent / images:.3f}',
            f'{spent / total:.1%}',
            f'{images / spent:.0f}' if spent else '',
        )
        for name, spent in zip(names, seconds, strict=True)
    ]
    return [*rows, ('all', f'{1e3 * total / images:.3f}', '100.0%', f'{images / total:.0f}')]


class SlowBackend(fileio.LocalBackend):
    """Local disk with a delay before each file."""

    def __init__(self, delay_s: float) -> None:
        self.delay_s = delay_s

    def get(self, filepath: str | Path) -> bytes:
        """Read a file after the delay."""
        time.sleep(self.delay_s)
        return super().get(filepath)


def load_epochs(rank: int, folder: str, args: argparse.Namespace) -> None:
    """Load all epochs as one rank. Rank 0 saves the measurements of all ranks."""
    meet = {'init_method': f'file://{folder}/meet', 'rank': rank, 'world_size': args.ranks}
    torch.distributed.init_process_group('gloo', **meet)
    torch.set_num_threads(1)
    init_default_scope(SCOPE)
    fileio.register_backend('slow', SlowBackend)
    cfg = Config.fromfile(Path(folder, 'config.py'))
    set_multi_processing(**cfg.env_cfg.mp_cfg)
    load = dataset_of(cfg.train_dataloader)['pipeline'][0]
    if args.delay_ms:
        load['backend_args'] = {'backend': 'slow', 'delay_s': args.delay_ms / 1000}
    loader = Runner.build_dataloader(cfg.train_dataloader, seed=0)
    epochs = []
    for epoch in range(args.epochs):
        barrier()
        epochs.append(all_gather_object(tuple(load_epoch(loader, epoch))))
    if rank == 0:
        torch.save(epochs, Path(folder, 'epochs.pt'))
    torch.distributed.destroy_process_group()


def load_epoch(loader: Any, epoch: int) -> Epoch:
    """Load one epoch of this rank's batches."""
    loader.batch_sampler.sampler.set_epoch(epoch)
    images = pixels = padded = 0
    start = time.perf_counter()
    for batch in loader:
        sizes = [image.shape[-2:] for image in batch['inputs']]
        images += len(sizes)
        pixels += sum(h * w for h, w in sizes)
        padded += len(sizes) * max(h for h, _ in sizes) * max(w for _, w in sizes)
    seconds = time.perf_counter() - start
    barrier()  # measure all ranks while their workers are idle
    cache = getattr(loader.dataset, 'image_cache', None)
    memory, cached = proportional_memory(), cache.occupied()[1] if cache else 0
    barrier()
    return Epoch(images, seconds, pixels, padded, memory, cached)


def proportional_memory() -> int:
    """Proportional set size of this process and its children in bytes; a page shared by n processes counts 1/n."""
    children = Path(f'/proc/self/task/{os.getpid()}/children').read_text().split()
    rollups = [Path('/proc', pid, 'smaps_rollup').read_text() for pid in ('self', *children)]
    return sum(int(text.split('Pss:')[1].split()[0]) for text in rollups) * 1024


def line_of(epoch: int, ranks: list[Epoch]) -> tuple[str, ...]:
    """One row for `HEADER`."""
    images, seconds = sum(r.images for r in ranks), max(r.seconds for r in ranks)
    cached = max(r.cached for r in ranks)
    memory = sum(r.memory for r in ranks) + cached
    padded = 1 - sum(r.pixels for r in ranks) / sum(r.padded_pixels for r in ranks)
    return (
        str(epoch + 1),
        str(images),
        f'{seconds:.2f}',
        f'{images / seconds:.1f}',
        f'{padded:.1%}',
        f'{memory / 2**20:.1f}',
        f'{cached / 2**20:.1f}',
    )


if __name__ == '__main__':
    run_cli(main)
