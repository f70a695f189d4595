"""A package of AOTInductor: the graph compiled to C++, which C++ runs without Python. Needs a C++ compiler."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ddetr.deployment.options import ExportOptions
from ddetr.deployment.tracing import quiet, trace

from .archive import annotate

__all__ = ['SUFFIX', 'annotate', 'write']

SUFFIX = '.pt2'
# weights become constants, which lets the compiler fold norms and pack matrices for the CPU's kernels
CONFIGS = {'freezing': True}


def write(module: nn.Module, example: tuple[Tensor, Tensor], options: ExportOptions, path: Path) -> None:
    """Compile `module` into a .pt2 package; arguments as in `targets.onnx`. Takes minutes."""
    program = trace(module, example, options)
    with torch.no_grad(), quiet():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=CONFIGS)
