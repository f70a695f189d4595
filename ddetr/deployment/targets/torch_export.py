"""A program of `torch.export`, which Python runs without the detector's code."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ddetr.deployment.options import ExportOptions
from ddetr.deployment.tracing import trace

from .archive import annotate

__all__ = ['SUFFIX', 'annotate', 'write']

SUFFIX = '.pt2'


def write(module: nn.Module, example: tuple[Tensor, Tensor], options: ExportOptions, path: Path) -> None:
    """Write `module` as a .pt2 archive of `torch.export`; arguments as in `targets.onnx`."""
    torch.export.save(trace(module, example, options), path)
