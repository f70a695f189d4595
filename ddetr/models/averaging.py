"""Averaged weights (EMA) for mmengine's `EMAHook`."""

import math

import torch
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from ddetr.registry import MODELS
from ddetr.utils.errors import ConfigError


@MODELS.register_module()
class ExpMomentumEMA(ExponentialMovingAverage):
    """Exponential moving average with momentum warm-up (Ge et al., "YOLOX", 2021).

    The momentum after t updates is momentum + (1 - momentum) * exp(-(1 + t) / gamma), so the average follows the
    weights closely at first and slowly later on.

    Args:
        model: Model whose weights are averaged.
        momentum: Weight of the current parameters in each update, after warm-up.
        gamma: Time constant of the warm-up, in updates; positive.
        interval: Number of iterations between updates.
        device: Device of the averaged weights; None for the model's device.
        update_buffers: Whether to average buffers instead of copying them.

    Raises:
        ConfigError: `gamma` is not positive.
    """

    def __init__(
        self,
        model: nn.Module,
        momentum: float = 0.0002,
        gamma: int = 2000,
        interval: int = 1,
        device: torch.device | None = None,
        update_buffers: bool = False,
    ) -> None:
        super().__init__(model, momentum, interval, device, update_buffers)
        if gamma <= 0:
            raise ConfigError(f'ExpMomentumEMA gamma={gamma} must be positive: correct it in custom_hooks.')
        self.gamma = gamma

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: int) -> None:
        """Update the average in place; `steps` is the number of previous updates."""
        momentum = self.momentum + (1 - self.momentum) * math.exp(-(1 + steps) / self.gamma)
        averaged_param.lerp_(source_param, momentum)
