"""Comparison of interrupted and resumed training runs with uninterrupted ones."""

import signal
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ddetr.analysis.trainings import Training, differences
from ddetr.datasets.shapes import ShapesRecipe, make_shapes

IMAGES = 12  # in batches of 2 and two epochs


class Case(NamedTuple):
    """A training run and the point of its interruption."""

    name: str
    options: Mapping[str, Any]  # config options by dotted key
    asked: Mapping[str, Any]  # keywords of `AskToEnd`
    processes: int = 1


def _endless(sampler: str) -> dict[str, Any]:
    """Return options for iteration-based training."""
    return {
        'train_cfg': {'_delete_': True, 'type': 'IterBasedTrainLoop', 'max_iters': 12, 'val_interval': 5},
        'train_dataloader.sampler.type': sampler,
        'default_hooks.checkpoint': {'type': 'CheckpointHook', 'by_epoch': False, 'interval': 3},
        'param_scheduler': [
            {'type': 'LinearLR', 'by_epoch': False, 'start_factor': 0.1, 'begin': 0, 'end': 10}
        ],
        'log_processor.by_epoch': False,
    }


WORKERS = {'train_dataloader.num_workers': 2}
PERSISTENT = {**WORKERS, 'train_dataloader.persistent_workers': True}
EMA = {'custom_hooks': [{'type': 'EMAHook', 'momentum': 0.01}]}
ACCUMULATION = {'optim_wrapper.accumulative_counts': 4}  # 6 iterations per epoch: windows of 4 and 2
BF16 = {'optim_wrapper.type': 'AmpOptimWrapper', 'optim_wrapper.dtype': 'bfloat16'}
FP16 = {**BF16, 'optim_wrapper.dtype': 'float16', 'optim_wrapper.loss_scale': {'init_scale': 2.0**20}}
ONE_IMAGE = {'train_dataloader.batch_size': 1}  # for each of two processes

CASES = (
    Case("an epoch's end", {}, {'iteration': 5}),
    Case('mid-epoch', {}, {'iteration': 7}),
    Case('by SIGUSR1', {}, {'iteration': 7, 'number': int(signal.SIGUSR1)}),
    Case('2 workers', WORKERS, {'iteration': 7}),
    Case('2 persistent workers', PERSISTENT, {'iteration': 7}),
    Case('aspect ratios grouped', {'train_dataloader.batch_sampler.type': 'AspectRatioBatchSampler'}, {'iteration': 7}),
    Case('EMA', EMA, {'iteration': 7}),
    Case('EMA, in a validation', EMA, {'iteration': 5, 'validating': True}),
    Case('accumulation, mid-window', ACCUMULATION, {'iteration': 8}),
    Case('bf16', BF16, {'iteration': 7}),
    Case('fp16, mid-window', {**FP16, **ACCUMULATION}, {'iteration': 8}),
    Case('by iterations', _endless('InfiniteSampler'), {'iteration': 7}),
    Case('by iterations, over epochs', {**_endless('DefaultSampler'), **ACCUMULATION}, {'iteration': 5}),
    Case('2 processes', ONE_IMAGE, {'iteration': 7, 'rank': 1}, 2),
    Case('2 processes, fp16', {**ONE_IMAGE, **FP16}, {'iteration': 7, 'rank': 1}, 2),
    Case(
        '2 processes, all of it',
        {**ONE_IMAGE, **PERSISTENT, **EMA, **ACCUMULATION, **BF16},
        {'iteration': 8, 'rank': 1},
        2,
    ),
)  # fmt: skip


class Outcome(NamedTuple):
    """Result of a case."""

    interrupted: list[int]  # exit codes of all processes
    resumed: list[int]
    apart: dict[str, float]  # largest difference per component of the last checkpoint


def data_options(folder: Path) -> dict[str, Any]:
    """Draw a small dataset in `folder`; return the options to train a config on it and keep the best checkpoint."""
    data_root = folder / 'shapes'
    make_shapes(data_root, ShapesRecipe(num_train=IMAGES, num_val=4, size=64))
    loaders = {f'{split}_dataloader.dataset.data_root': str(data_root) for split in ('train', 'val', 'test')}
    best = {'save_best': 'coco/bbox_mAP', 'max_keep_ckpts': -1}
    return {**loaders, **{f'default_hooks.checkpoint.{key}': value for key, value in best.items()}}


def check_resume(config: str, data: Mapping[str, Any], case: Case) -> Outcome:
    """Train a case twice, once interrupted and resumed in new processes, and compare the last checkpoints."""
    training = Training(config, {**data, **case.options}, case.processes)
    hooks = [*case.options.get('custom_hooks', []), {'type': 'AskToEnd', **case.asked}]
    with tempfile.TemporaryDirectory() as folder:
        whole, parts = Path(folder, 'whole'), Path(folder, 'parts')
        training.run(whole)
        interrupted = training.run(parts, custom_hooks=hooks)
        resumed = training.run(parts, resume='auto')
        last = Path((whole / 'last_checkpoint').read_text()).name
        return Outcome(interrupted, resumed, differences(whole / last, parts / last))
