"""Optimizer wrappers whose windows of accumulated gradients the training loop begins (loops.py)."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine import optim as engine
from torch import nn

from ddetr.registry import OPTIM_WRAPPERS


@OPTIM_WRAPPERS.register_module()
class OptimWrapper(engine.OptimWrapper):
    """mmengine's wrapper. Its loops count all iterations, so that a window may lie across the end of an epoch."""

    def initialize_count_status(self, model: nn.Module, init_counts: int, max_counts: int) -> None:
        """Begin a window of `max_counts` batches, of which `init_counts` are done; the last one updates the weights."""
        self._inner_count, self._max_counts = init_counts, max_counts
        self._remainder_counts = max_counts % self._accumulative_counts


@OPTIM_WRAPPERS.register_module()
class AmpOptimWrapper(OptimWrapper, engine.AmpOptimWrapper):
    """Mixed precision on every device: by default float16 on a GPU, bfloat16 on the CPU.

    float16 needs its losses scaled, bfloat16 has float32's range. mmengine's constructor first asserts that there is a
    GPU, its autocast knows no float16 on the CPU.

    Args:
        loss_scale: 'dynamic', a constant, or keywords of `torch.amp.GradScaler`.
        dtype: 'float16' or 'bfloat16'.
        **kwargs: Of `OptimWrapper`.
    """

    def __init__(self, loss_scale: Any = 'dynamic', dtype: str | torch.dtype | None = None, **kwargs) -> None:
        engine.OptimWrapper.__init__(self, **kwargs)
        self.device = 'cuda' if torch.cuda.is_available() else 'cpu'
        given = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        self.cast_dtype = given or torch.get_autocast_dtype(self.device)
        self._scale_update_param = loss_scale if isinstance(loss_scale, float) else None
        scaling: Any = {} if self._scale_update_param is None else {'init_scale': loss_scale}
        scaling = loss_scale if isinstance(loss_scale, dict) else scaling
        enabled = self.cast_dtype is torch.float16
        self.loss_scaler = torch.amp.GradScaler(self.device, enabled=enabled, **scaling)

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Autocast, and no synchronisation of gradients before the last batch of a window."""
        with OptimWrapper.optim_context(self, model), torch.autocast(self.device, self.cast_dtype):
            yield
