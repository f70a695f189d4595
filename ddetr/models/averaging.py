"""Averaged weights (EMA) for mmengine's `EMAHook`."""

import math

import torch
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from ddetr.registry import MODELS
from ddetr.utils.errors import ConfigError


@MODELS.register_module()
class ExpMomentumEMA(ExponentialMovingAverage):
    """An average that follows the weights closely at first, and slowly later on (Ge et al., "YOLOX", 2021).

    After t updates the weights enter with momentum + (1 - momentum) * exp(-(1 + t) / gamma).

    Args:
        model: Model whose weights are averaged.
        momentum: Share of the weights in the average once it has warmed up.
        gamma: Updates in which what the momentum starts with above `momentum` falls to 1 / e; positive.
        interval: Iterations between two updates.
        device: Where the average is kept; None for the model's device.
        update_buffers: Average the buffers too, instead of copying them.

    Raises:
        ConfigError: A `gamma` that is not positive.
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
            raise ConfigError(f'ExpMomentumEMA gamma={gamma} is not positive: correct it in custom_hooks.')
        self.gamma = gamma

    def avg_func(self, averaged_param: Tensor, source_param: Tensor, steps: int) -> None:
        """Move the average towards the weights, in place; `steps` updates came before."""
        momentum = self.momentum + (1 - self.momentum) * math.exp(-(1 + steps) / self.gamma)
        averaged_param.lerp_(source_param, momentum)
