"""Tracing of a detector to a graph of PyTorch operators, the common input of all targets."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode

from ddetr.deployment.info import INPUT_NAMES
from ddetr.deployment.options import ExportOptions
from ddetr.utils.errors import InputError, first_line


def trace(module: nn.Module, example: tuple[Tensor, Tensor], options: ExportOptions) -> ExportedProgram:
    """Trace the module; all sizes are dynamic unless the options fix them.

    Raises:
        InputError: The detector cannot be traced.
    """
    shapes = {name: dict.fromkeys(axes, Dim.DYNAMIC) for name, axes in axis_names(options).items()}
    try:
        with torch.no_grad(), quiet(), integer_padding(), SymbolicNumbers():
            return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
    except InputError:
        raise
    except Exception as error:  # torch.export has no common exception class
        detector = type(getattr(module, 'detector', module)).__name__
        raise InputError(
            f'{detector} cannot be traced by torch.export: {first_line(error)} If its code needs constant sizes, '
            'fix them with --batch, --height and --width.'
        ) from error


def axis_names(options: ExportOptions) -> dict[str, dict[int, str]]:
    """Return the names of the inputs' dynamic axes, by input and axis."""
    sizes = {0: ('batch', options.batch), 2: ('height', options.height), 3: ('width', options.width)}
    images = {axis: name for axis, (name, fixed) in sizes.items() if fixed is None}
    return dict(zip(INPUT_NAMES, (images, {0: 'batch'} if options.batch is None else {}), strict=True))


class SymbolicNumbers(TorchFunctionMode):
    """Keep numbers symbolic in `tensor.new_tensor`, as in `torch.tensor`; otherwise it fixes the example's values."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is Tensor.new_tensor and _has_symbols(args[1]):
            like = args[0].new_empty((), dtype=kwargs.get('dtype'))
            return _stack(args[1], like)
        return func(*args, **kwargs)


def _has_symbols(data: Any) -> bool:
    if isinstance(data, (list, tuple)):
        return any(map(_has_symbols, data))
    return isinstance(data, (torch.SymInt, torch.SymFloat))


def _stack(data: Any, like: Tensor) -> Tensor:
    if isinstance(data, (list, tuple)):
        return torch.stack([_stack(item, like) for item in data])
    return like.new_full((), data)


@contextlib.contextmanager
def integer_padding() -> Iterator[None]:
    """Compute timm's "same" padding in integers: the tracer cannot simplify its floats, and takes minutes over them."""
    try:
        from timm.layers import padding
    except ImportError:
        yield
        return

    def total(size: Any, kernel: int, stride: int, dilation: int) -> Any:
        return torch.sym_max((-(-size // stride) - 1) * stride + (kernel - 1) * dilation + 1 - size, 0)

    with mock.patch.object(padding, 'get_same_padding', total):
        yield


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress log messages of the exporters."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
