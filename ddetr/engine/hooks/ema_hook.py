"""Averaged weights that follow the updates."""

from typing import Any

from mmengine import hooks
from mmengine.runner import Runner

from ddetr.registry import HOOKS


@HOOKS.register_module()
class EMAHook(hooks.EMAHook):
    """mmengine's hook, which averages after each iteration; this one after each update of the weights.

    Iterations inside an accumulation window, steps that the black box has skipped and float16 gradients that have
    overflown update nothing: with them the average would forget faster. `interval` counts updates.
    """

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Take the weights into the average, if they have changed."""
        if getattr(runner.optim_wrapper, 'updated', True):
            super().after_train_iter(runner, *args, **kwargs)
