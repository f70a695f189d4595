"""Pause a training run at a given point; imported by the training processes."""

import time
from pathlib import Path
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ddetr.engine.interruption import InterruptionHook
from ddetr.registry import HOOKS


@HOOKS.register_module()
class Pause(Hook):
    """Make one process wait before an iteration until it gets a signal; the others wait in a collective call.

    Args:
        iteration: That iteration, from 0.
        rank: The process that waits.
        file: Made when it begins to wait. A process that finds it there does not wait.
    """

    def __init__(self, iteration: int, rank: int, file: str) -> None:
        self.iteration, self.rank, self.file = iteration, rank, Path(file)

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """See the class."""
        if (runner.iter, runner.rank) == (self.iteration, self.rank) and not self.file.exists():
            self.file.touch()
            asked = next(hook for hook in runner.hooks if isinstance(hook, InterruptionHook))
            while not asked.asked:
                time.sleep(0.05)
