"""Optimizer wrappers whose accumulation windows are controlled by the training loop (loops.py)."""

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from mmengine import optim as engine
from mmengine.logging import print_log
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grads_with_norm_, get_total_norm

from ddetr.registry import OPTIM_WRAPPERS
from ddetr.utils.errors import ConfigError
from ddetr.utils.nonfinite import watched

DTYPES = ('float16', 'bfloat16')
EMULATING = ('NO AVX', 'AVX2')  # PyTorch's names for x86 CPUs without AVX-512


class Watch(Protocol):
    """Interface for inspecting each step before the weights are updated."""

    notes: list[str]  # faults in the current forward pass; see `ddetr.utils.nonfinite`

    def allows(self, loss: float, gradient_norm: float) -> bool:
        """Whether to use a batch with this loss and the gradients accumulated so far."""


@OPTIM_WRAPPERS.register_module()
class OptimWrapper(engine.OptimWrapper):
    """mmengine's optimizer wrapper with an optional watch that can reject updates.

    mmengine counts all iterations, so its accumulation windows may extend beyond the end of an epoch. Here the loop
    sets the length of each window.

    Attributes:
        watch: Decides after each backward pass whether to use the batch.
        spoilt: Whether an earlier batch of the current window was rejected, so that the whole window is skipped.
        updated: Whether the last batch updated the weights.
    """

    watch: Watch | None = None
    spoilt = False
    updated = False
    _norm: tuple[Tensor, float] | None = None  # gradient norm of the window, if watched

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """Start a window of `max_counts` batches, `init_counts` of them completed. The last one updates the weights."""
        self._inner_count, self._max_counts = init_counts, max_counts
        self._remainder_counts = max_counts % self._accumulative_counts

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Skip gradient synchronisation before the last batch of a window; report failures to the watch."""
        notes = None if self.watch is None else self.watch.notes
        with engine.OptimWrapper.optim_context(self, model), watched(notes):
            yield

    def update_params(
        self, loss: Tensor, step_kwargs: dict | None = None, zero_kwargs: dict | None = None
    ) -> None:
        """Run the backward pass and, at the end of a window, update the weights unless a batch was rejected."""
        self.backward(self.scale_loss(loss))
        last, norm = self.should_update(), 0.0
        if last:
            self._unscale()
        if self.watch is not None:
            norm_there = self._gradient_norm().to(loss.device)
            both = torch.stack((loss.detach().to(norm_there.dtype), norm_there))
            value, norm = both.tolist()  # synchronises with the GPU
            self._norm = norm_there, norm
            self.spoilt = not self.watch.allows(value, norm) or self.spoilt
        self.updated = last and math.isfinite(norm) and not self.spoilt
        if last:
            self._discard() if self.spoilt else self.step(**(step_kwargs or {}))
            self.zero_grad(**(zero_kwargs or {}))
            self.spoilt, self._norm = False, None

    def _gradient_norm(self) -> Tensor:
        options = {**(self.clip_grad_kwargs or {})}
        gradients = [p.grad for p in self._with_gradient() if p.grad is not None]
        return get_total_norm(gradients, options.get('norm_type', 2.0), foreach=options.get('foreach'))

    def _with_gradient(self) -> list[nn.Parameter]:
        groups = self.optimizer.param_groups
        return [p for group in groups for p in group['params'] if p.requires_grad and p.grad is not None]

    def _clip_grad(self) -> None:
        """Clip as mmengine does, but reuse the gradient norm computed for the watch."""
        if self._norm is None or self.clip_func is not clip_grad_norm_:
            super()._clip_grad()
            return
        norm_there, norm = self._norm
        options = self.clip_grad_kwargs
        clip_grads_with_norm_(self._with_gradient(), options['max_norm'], norm_there, options.get('foreach'))
        if math.isfinite(norm):
            self.message_hub.update_scalar(f'train/{self.grad_name}', norm)

    def _unscale(self) -> None:
        """Do nothing: there is no loss scale."""

    def _discard(self) -> None:
        """Discard a window without an update."""


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(OptimWrapper, engine.AmpOptimWrapper):
    """Automatic mixed precision on GPU and CPU; by default float16 on a GPU, bfloat16 on the CPU.

    float16 needs a loss scale; bfloat16 has the range of float32. mmengine's constructor requires a GPU, and its
    autocast does not support float16 on the CPU.

    Args:
        loss_scale: 'dynamic', a constant, or keyword arguments of `torch.amp.GradScaler`.
        dtype: 'float16' or 'bfloat16'.
        **kwargs: See `OptimWrapper`.

    Raises:
        ConfigError: The dtype is not supported.
    """

    _unscaled = False

    def __init__(self, loss_scale: Any = 'dynamic', dtype: str | torch.dtype | None = None, **kwargs) -> None:
        engine.OptimWrapper.__init__(self, **kwargs)
        self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
        name = str(dtype or torch.get_autocast_dtype(self.device)).removeprefix('torch.')
        if name not in DTYPES:
            raise ConfigError(f'optim_wrapper.dtype={name!r} must be one of {", ".join(DTYPES)}.')
        self.cast_dtype = getattr(torch, name)
        _warn_of_emulation(self.device, name)
        self._scale_update_param = loss_scale if isinstance(loss_scale, float) else None
        scaling: Any = {} if self._scale_update_param is None else {'init_scale': loss_scale}
        scaling = loss_scale if isinstance(loss_scale, dict) else scaling
        enabled = self.cast_dtype is torch.float16
        self.loss_scaler = torch.amp.GradScaler(self.device, enabled=enabled, **scaling)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast in addition to `OptimWrapper`."""
        with OptimWrapper.optim_context(self, model), torch.autocast(self.device, self.cast_dtype):
            yield

    def step(self, **kwargs: Any) -> None:
        """Update the weights, or reduce the loss scale after an overflow."""
        self._unscale()
        if self.clip_grad_kwargs:
            self._clip_grad()
        self.loss_scaler.step(self.optimizer, **kwargs)
        self.loss_scaler.update(self._scale_update_param)
        self._unscaled = False

    def _unscale(self) -> None:
        if not self._unscaled:
            self.loss_scaler.unscale_(self.optimizer)
            self._unscaled = True

    def _discard(self) -> None:
        self.loss_scaler.update(self.loss_scaler.get_scale())  # reset the scaler's state, keep the scale
        self._unscaled = False


def _warn_of_emulation(device: str, dtype: str) -> None:
    """Warn if the CPU has no instructions for a dtype: matrix products then take up to 200 times as long."""
    if device == 'cpu' and torch.backends.cpu.get_cpu_capability() in EMULATING:
        print_log(
            f'This CPU has no {dtype} instructions. Emulating them is many times slower than float32: train without '
            '--amp.',
            'current',
            logging.WARNING,
        )
