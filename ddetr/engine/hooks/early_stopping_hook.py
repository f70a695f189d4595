"""Stop training when the validation metric no longer improves."""

from typing import Any

from mmengine import hooks
from mmengine.runner import Runner

from ddetr.registry import HOOKS
from ddetr.utils.errors import ConfigError

STATE = ('best_score', 'wait_count')


@HOOKS.register_module()
class EarlyStoppingHook(hooks.EarlyStoppingHook):
    """mmengine's hook with defaults for metrics in [0, 1] and a state that survives resuming.

    The state is stored in every checkpoint, so that a resumed run stops where an uninterrupted one would.

    Args:
        monitor: Metric name, such as `coco/bbox_mAP`.
        min_delta: Minimum improvement. mmengine's default of 0.1 would be 10 points of AP.
        patience: Number of validations without improvement after which training stops.
        strict: Whether to raise an error instead of a warning if `monitor` is not a validation metric.
        **kwargs: `rule`, `check_finite` and `stopping_threshold` of mmengine's hook.

    Raises:
        ConfigError: During validation, `monitor` is not among the metrics and `strict` is True.
    """

    def __init__(
        self, monitor: str, min_delta: float = 0.001, patience: int = 5, strict: bool = True, **kwargs: Any
    ) -> None:
        super().__init__(monitor, min_delta=min_delta, patience=patience, strict=strict, **kwargs)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """Compare the metric with the best one so far."""
        metrics = metrics or {}
        if self.strict and self.monitor not in metrics:
            names = ', '.join(metrics) or 'none'
            raise ConfigError(
                f'EarlyStoppingHook.monitor={self.monitor!r} is not a validation metric. Choose one of: {names}.'
            )
        hub = runner.message_hub
        for name in STATE:
            setattr(self, name, hub.get_info(f'early_stopping_{name}', getattr(self, name)))
        super().after_val_epoch(runner, metrics)
        for name in STATE:
            hub.update_info(f'early_stopping_{name}', float(getattr(self, name)))
