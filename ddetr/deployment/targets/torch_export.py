"""Export to a `torch.export` program, which runs in Python without the detector's code."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ddetr.deployment.options import ExportOptions
from ddetr.deployment.tracing import trace

from .archive import annotate

__all__ = ['SUFFIX', 'annotate', 'write']

SUFFIX = '.pt2'


def write(module: nn.Module, example: tuple[Tensor, Tensor], options: ExportOptions, path: Path) -> None:
    """Write `module` as a `torch.export` .pt2 archive; see `targets.onnx.write` for arguments."""
    torch.export.save(trace(module, example, options), path)
