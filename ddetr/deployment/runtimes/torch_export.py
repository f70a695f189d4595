"""Inference of `torch.export` programs with PyTorch."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddetr.utils.errors import InputError, first_line

from . import base
from .archives import read_info


class Runtime(base.Runtime):
    """An exported graph in PyTorch, independent of the detector's code; see `runtimes.onnx.Runtime`."""

    def __init__(self, path: str | Path, device: str = 'cpu', threads: int | None = None) -> None:
        import ddetr_ops  # noqa: F401 (registers the op that the graph calls)

        if threads is not None:
            torch.set_num_threads(threads)
        self.path, self.device, self.info = str(path), torch.device(device), read_info(path)
        try:
            self._run_module = self._load()
        except Exception as error:  # torch can raise any exception on a malformed archive
            raise InputError(f'{path} cannot be read by PyTorch: {first_line(error)}') from error

    def _load(self) -> Callable[..., Any]:
        return torch.export.load(self.path).module().to(self.device)

    def _run(self, images: np.ndarray, sizes_hw: np.ndarray) -> list[np.ndarray]:
        inputs = (
            torch.from_numpy(np.ascontiguousarray(array)).to(self.device) for array in (images, sizes_hw)
        )
        with torch.no_grad():
            outputs = self._run_module(*inputs)
        return [output.cpu().numpy() for output in outputs]
