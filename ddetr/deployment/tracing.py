"""A detector as a graph of PyTorch's operators, which all targets start from."""

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram
from torch.overrides import TorchFunctionMode

from ddetr.deployment.info import INPUT_NAMES
from ddetr.deployment.options import ExportOptions
from ddetr.utils.errors import InputError, first_line


def trace(module: nn.Module, example: tuple[Tensor, Tensor], options: ExportOptions) -> ExportedProgram:
    """The module as a graph, with all sizes dynamic that the options do not fix.

    Raises:
        InputError: The detector does something that cannot be traced.
    """
    shapes = {name: dict.fromkeys(axes, Dim.DYNAMIC) for name, axes in axis_names(options).items()}
    try:
        with torch.no_grad(), quiet(), SymbolicNumbers():
            return torch.export.export(module, example, dynamic_shapes=shapes, strict=False)
    except InputError:
        raise
    except Exception as error:  # torch.export has no common class of errors
        detector = type(getattr(module, 'detector', module)).__name__
        raise InputError(
            f'{detector} cannot be traced by torch.export: {first_line(error)} Where its code needs sizes as numbers, '
            'fix them with --batch, --height and --width.'
        ) from error


def axis_names(options: ExportOptions) -> dict[str, dict[int, str]]:
    """The dynamic axes of the inputs, by input and axis."""
    sizes = {0: ('batch', options.batch), 2: ('height', options.height), 3: ('width', options.width)}
    images = {axis: name for axis, (name, fixed) in sizes.items() if fixed is None}
    return dict(zip(INPUT_NAMES, (images, {0: 'batch'} if options.batch is None else {}), strict=True))


class SymbolicNumbers(TorchFunctionMode):
    """Keep symbolic numbers in `tensor.new_tensor`, which would fix them at the example's, as `torch.tensor` does."""

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
def quiet() -> Iterator[None]:
    """Keep the exporters' notes about themselves out of the output."""
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        yield
