"""Export to an AOTInductor package: the graph compiled to C++, usable without Python. Needs a C++ compiler."""

from pathlib import Path

import torch
from torch import Tensor, nn

from ddetr.deployment.options import ExportOptions
from ddetr.deployment.tracing import quiet, trace

from .archive import annotate

__all__ = ['SUFFIX', 'annotate', 'write']

SUFFIX = '.pt2'
# constant weights let the compiler fold norms and pack matrices for CPU kernels
CONFIGS = {'freezing': True}


def write(module: nn.Module, example: tuple[Tensor, Tensor], options: ExportOptions, path: Path) -> None:
    """Compile `module` to a .pt2 package, which takes minutes; see `targets.onnx.write` for arguments."""
    program = trace(module, example, options)
    with torch.no_grad(), quiet():
        torch._inductor.aoti_compile_and_package(program, package_path=str(path), inductor_configs=CONFIGS)
