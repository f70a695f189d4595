"""Schedules relative to the training length."""

import math
from collections.abc import Mapping
from typing import Any

from ddetr.utils.errors import ConfigError

STEP_KEYS = ('begin', 'end', 'T_max', 'step_size', 'milestones')


def resolve_shares(scheduler: Mapping[str, Any], max_epochs: int, max_iters: int) -> dict[str, Any]:
    """Copy a scheduler config and convert fractions of the training length to epochs or iterations.

    A float in `begin`, `end`, `T_max`, `step_size` or `milestones` is a fraction, rounded down but to at least one
    step unless it is 0: `milestones=[0.8]` is epoch 40 of 50. Integers are kept.

    Args:
        scheduler: One entry of `param_scheduler`; `by_epoch` selects epochs or iterations.
        max_epochs, max_iters: Length of the training.

    Raises:
        ConfigError: A float outside 0..1.
    """
    total = max_epochs if scheduler.get('by_epoch', True) else max_iters
    resolved = dict(scheduler)
    for key in STEP_KEYS:
        value = scheduler.get(key)
        if isinstance(value, (list, tuple)):
            resolved[key] = [_steps(key, share, total) for share in value]
        elif value is not None:
            resolved[key] = _steps(key, value, total)
    return resolved


def _steps(key: str, value: Any, total: int) -> Any:
    if not isinstance(value, float):
        return value
    if not 0 <= value <= 1:
        raise ConfigError(
            f'param_scheduler.{key}={value} is not a valid fraction of the training: use a float from 0 to 1, or an '
            'integer number of epochs or iterations.'
        )
    return max(math.floor(value * total + 1e-6), 1) if value else 0
