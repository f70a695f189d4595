"""Inference with exported files: one module per runtime, each with a class `Runtime`.

`Runtime(path, device, threads)` is a subclass of `base.Runtime`.
"""

import importlib
from pathlib import Path

from ddetr.utils.errors import InputError

from .base import Runtime

MODULES = {
    '.onnx': 'onnx',
    '.xml': 'openvino',
    '.pt2': 'torch_export',
}  # by suffix; more than one may read .pt2


def is_exported(path: str | Path) -> bool:
    """Whether a file has the suffix of an exported detector."""
    return Path(path).suffix in MODULES


def load(path: str | Path, device: str = 'cpu', threads: int | None = None) -> Runtime:
    """Open an exported file in the runtime for its suffix.

    Raises:
        InputError: The suffix is unknown, or the runtime cannot read the file.
    """
    suffix = Path(path).suffix
    if suffix not in MODULES:
        raise InputError(f'{path}: the suffix of an exported detector must be one of {", ".join(MODULES)}.')
    name = MODULES[suffix]
    if suffix == '.pt2':
        from .archives import is_aoti_package

        name = 'aoti' if is_aoti_package(path) else name
    return importlib.import_module(f'{__name__}.{name}').Runtime(path, device, threads)
