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
    """Call `module` and save only its inputs; the backward pass recomputes the activations.

    Outputs, gradients and running statistics are bit-identical to those of a plain call. The recomputation uses the
    same random state (dropout) and autocast state. Outside training this is a plain call.
    """
    if not (module.training and torch.is_grad_enabled()):
        return module(*inputs)
    options: dict[str, Any] = {'use_reentrant': False}
    if any(isinstance(m, _BatchNorm) and m.training for m in module.modules()):
        options['context_fn'] = lambda: (nullcontext(), _statistics_kept(module))
    return checkpoint(module, *inputs, **options)


def check_num_cp(num_cp: int, num_layers: int, part: str) -> int:
    """Validate and return `num_cp`, the number of checkpointed layers (-1: none, as in MMDetection).

    Args:
        num_cp: Number of checkpointed layers.
        num_layers: Number of layers.
        part: Key under `model` in the config that holds both, for the error message.

    Raises:
        ConfigError: `num_cp` exceeds `num_layers`.
    """
    if num_cp > num_layers:
        raise ConfigError(f'model.{part}.num_cp={num_cp} exceeds num_layers={num_layers}: lower it.')
    return num_cp


@contextmanager
def _statistics_kept(module: nn.Module) -> Iterator[None]:
    """Restore batch norm statistics afterwards, so that recomputation does not count a batch twice."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training]
    kept = [dict(norm.named_buffers()) for norm in norms]
    for norm, buffers in zip(norms, kept, strict=True):
        norm._buffers.update({name: value.clone() for name, value in buffers.items()})
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            norm._buffers.update(buffers)
