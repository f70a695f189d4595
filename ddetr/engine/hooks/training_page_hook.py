"""Live HTML page with the curves and validation images of a training run."""

import logging
import re
import time
from pathlib import Path
from typing import Any

from mmengine.dist import get_world_size, is_main_process
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.runner import EpochBasedTrainLoop, Runner

from ddetr.registry import HOOKS
from ddetr.utils.errors import InputError

LEAST_SHARE = 100  # minimum interval between two pages, as a multiple of the time needed to write one


@HOOKS.register_module()
class TrainingPageHook(Hook):
    """Update `curves.html` in the work directory after each evaluation and at intervals in between.

    The page shows the data logged by mmengine's `LocalVisBackend`. Rank 0 writes it, which takes at most about 1% of
    the training time.

    Args:
        min_seconds: Minimum interval between two pages in seconds, except after evaluations.
    """

    priority = 'VERY_LOW'  # after the logger

    def __init__(self, min_seconds: float = 15.0) -> None:
        self.min_seconds = min_seconds
        self._due = 0.0

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Write the page if it is due."""
        if is_main_process() and time.monotonic() >= self._due and self._has_log(runner):
            self._write(runner, 'running', runner.iter + 1)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Write the page with the new metrics, if this validation is part of training."""
        if (
            is_main_process()
            and not isinstance(runner._train_loop, (dict, type(None)))
            and self._has_log(runner)
        ):
            self._write(runner, 'running', runner.iter)

    def after_train(self, runner: Runner) -> None:
        """Write the final page."""
        if is_main_process() and self._has_log(runner):
            self._write(runner, 'ended', runner.iter)

    def _write(self, runner: Runner, state: str, iteration: int) -> None:
        from ddetr.visualization.training_page import Progress, write_progress, write_training_page

        began = time.monotonic()
        loop: Any = runner.train_loop
        by_epoch = isinstance(loop, EpochBasedTrainLoop)
        length = len(loop.dataloader) if by_epoch else None
        progress = Progress(
            title=_title(runner),
            state=state,
            iteration=iteration,
            max_iterations=runner.max_iters,
            epoch=min(iteration // length + (state == 'running'), runner.max_epochs) if length else None,
            max_epochs=runner.max_epochs if by_epoch else None,
            iterations_per_epoch=length,
            accumulated=runner.optim_wrapper._accumulative_counts,
            images_per_iteration=getattr(loop.dataloader.batch_sampler, 'batch_size', 1) * get_world_size(),
            eta_s=runner.message_hub.runtime_info.get('eta'),
            written_s=time.time(),
        )
        try:
            write_progress(progress, runner.work_dir)
            write_training_page(runner.work_dir)
        except (OSError, InputError) as error:  # a full disk must not end the training
            print_log(f'the training page cannot be written: {error}.', 'current', logging.WARNING)
        now = time.monotonic()
        self._due = now + max(self.min_seconds, LEAST_SHARE * (now - began))

    @staticmethod
    def _has_log(runner: Runner) -> bool:
        """Whether this run has logged any scalars."""
        return Path(runner._log_dir, 'vis_data', 'scalars.json').exists()


def _title(runner: Runner) -> str:
    """Name of the config, without the timestamp that mmengine appends."""
    return re.sub(r'_?\d{8}_\d{6}.*$', '', runner.experiment_name) or Path(runner.work_dir).name
