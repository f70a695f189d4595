"""Weight averaging (EMA) after weight updates."""

from typing import Any

from mmengine import hooks
from mmengine.runner import Runner

from ddetr.registry import HOOKS


@HOOKS.register_module()
class EMAHook(hooks.EMAHook):
    """mmengine's hook, except that it averages after each weight update instead of each iteration.

    Iterations inside an accumulation window, steps skipped by the black box and float16 overflows do not update the
    weights. Counting them would make the average decay faster. `interval` counts updates.
    """

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Update the average if the weights have changed."""
        if getattr(runner.optim_wrapper, 'updated', True):
            super().after_train_iter(runner, *args, **kwargs)
