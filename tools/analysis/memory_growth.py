"""Check whether resident memory grows during training with validation.

    python tools/analysis/memory_growth.py

Trains a tiny detector on generated shapes, with batches of many sizes, and prints the resident memory of the process
after every 100 iterations. Exit status 1 if it grows by more than `--limit` between the first 100 and the last.
"""

import argparse
import gc
import sys
import tempfile
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ddetr.apis import TrainOptions, train_detector
from ddetr.datasets.shapes import ShapesRecipe, make_shapes
from ddetr.registry import HOOKS
from ddetr.utils.cli import run_cli
from ddetr.utils.tables import FORMATS, render_table

CONFIG = Path(__file__).parents[2] / 'tests' / 'configs' / 'tiny_shapes.py'
SIZES = [(size, size) for size in range(64, 161, 8)]
EVERY = 100


@HOOKS.register_module()
class ResidentMemory(Hook):
    """Record the resident memory of this process after every `EVERY` iterations and their validation."""

    priority = 'LOWEST'
    mib: list[float]

    def before_train(self, runner: Runner) -> None:
        """Reset the record."""
        type(self).mib = []

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Record the memory after the validation of the previous iteration."""
        if runner.iter and runner.iter % EVERY == 0:
            self.mib.append(resident_mib())

    def after_train(self, runner: Runner) -> None:
        """Record the memory after the last validation."""
        self.mib.append(resident_mib())


def resident_mib() -> float:
    """Resident memory of this process in MiB, after garbage collection. Linux only."""
    gc.collect()
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmRSS:')[1].split()[0]) / 1024


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument('config', nargs='?', default=str(CONFIG), help="config (default: the tests' config)")
    parser.add_argument(
        '--iterations', type=int, default=1000, help='number of iterations, a multiple of 100 (default: 1000)'
    )
    parser.add_argument('--limit', type=float, default=20, help='allowed growth in MB (default: %(default)s)')
    parser.add_argument('--format', choices=FORMATS, default='text')
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train(args.config, args.iterations, Path(folder))
    mib = ResidentMemory.mib
    rows = [[str(EVERY * (i + 1)), f'{value:.1f}'] for i, value in enumerate(mib)]
    print(render_table(['iterations', 'resident MiB'], rows, args.format))
    grown = (mib[-1] - mib[0]) * 1.048576
    print(f'grown by {grown:.1f} MB from iteration {EVERY} to {args.iterations}')
    if grown > args.limit:
        sys.exit(1)


def train(config: str, iterations: int, folder: Path) -> None:
    """Train with a validation and a checkpoint after every 100 iterations."""
    make_shapes(folder / 'shapes', ShapesRecipe(num_train=40, num_val=8, size=160))
    loaders = {
        f'{split}_dataloader.dataset.data_root': str(folder / 'shapes') for split in ('train', 'val', 'test')
    }
    options = {
        **loaders,
        'train_dataloader.dataset.pipeline.3.scales': SIZES,
        'train_cfg': {
            '_delete_': True,
            'type': 'IterBasedTrainLoop',
            'max_iters': iterations,
            'val_interval': EVERY,
        },
        'param_scheduler': [],
        'default_hooks.checkpoint': {
            'type': 'CheckpointHook',
            'by_epoch': False,
            'interval': EVERY,
            'max_keep_ckpts': 1,
        },
        'default_hooks.logger.interval': 10,
        'log_processor.by_epoch': False,
        'custom_hooks': [{'type': 'ResidentMemory'}],
    }
    train_detector(config, TrainOptions(str(folder / 'run'), cfg_options=options))


if __name__ == '__main__':
    run_cli(main)
