"""A program of `torch.export`, which Python runs without the detector's code."""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

from ddetr.deployment.options import ExportOptions
from ddetr.deployment.tracing import dynamic_shapes, tracing

from .archive import annotate

__all__ = ['SUFFIX', 'annotate', 'trace', 'write']

SUFFIX = '.pt2'


def write(module: nn.Module, example: tuple[Tensor, Tensor], options: ExportOptions, path: Path) -> None:
    """Write `module` as a .pt2 archive of `torch.export`; arguments as in `targets.onnx`."""
    torch.export.save(trace(module, example, options), path)


def trace(module: nn.Module, example: tuple[Tensor, Tensor], options: ExportOptions) -> ExportedProgram:
    """The module as a graph of PyTorch's operators."""
    with torch.no_grad(), tracing():
        return torch.export.export(module, example, dynamic_shapes=dynamic_shapes(options), strict=False)
