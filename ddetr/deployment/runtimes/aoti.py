"""Inference of AOTInductor packages with PyTorch."""

from collections.abc import Callable
from typing import Any

import torch

from . import torch_export


class Runtime(torch_export.Runtime):
    """A compiled detector; see `runtimes.onnx.Runtime`."""

    def _load(self) -> Callable[..., Any]:
        return torch._inductor.aoti_load_package(self.path)
