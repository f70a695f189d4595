"""Activation checkpointing (Chen et al., "Training Deep Nets with Sublinear Memory Cost", 2016)."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from ddetr.utils.errors import ConfigError


def checkpointed(module: nn.Module, *inputs: Any) -> Any:
    """Call `module` and keep its inputs only: the backward pass recomputes the activations.

    Results, gradients and running statistics are bit-equal to those of a plain call. The recomputation sees the same
    state of the random generators (dropout) and of autocast. Outside training this is a plain call.
    """
    if not (module.training and torch.is_grad_enabled()):
        return module(*inputs)
    options: dict[str, Any] = {'use_reentrant': False}
    if any(isinstance(m, _BatchNorm) and m.training for m in module.modules()):
        options['context_fn'] = lambda: (nullcontext(), _statistics_kept(module))
    return checkpoint(module, *inputs, **options)


def check_num_cp(num_cp: int, num_layers: int, part: str) -> int:
    """`num_cp`, the number of checkpointed layers; -1 for none, as in MMDetection.

    Raises:
        ConfigError: More than `num_layers`; `part` is the key of the config's model that has both.
    """
    if num_cp > num_layers:
        raise ConfigError(f'model.{part}.num_cp={num_cp} exceeds num_layers={num_layers}: lower it.')
    return num_cp


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Let batch norms update copies of their running statistics, so that a batch is not counted twice."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({name: value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
