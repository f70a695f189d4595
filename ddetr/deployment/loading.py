"""Exported files in their runtimes."""

import importlib
import zipfile
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np

from ddetr.utils.errors import InputError

from .info import ExportInfo

EXPORT_SUFFIXES = ('.onnx', '.xml', '.pt2')


class Found(NamedTuple):
    """Detections in a batch as a graph gives them; see `ExportInfo`."""

    boxes: np.ndarray  # (B, N, 4) float32, x1 y1 x2 y2 in pixels of the input images
    scores: np.ndarray  # (B, N) float32
    labels: np.ndarray  # (B, N) int64


class Runtime(Protocol):
    """An exported file that is ready to run."""

    info: ExportInfo

    def __call__(self, images: np.ndarray, sizes_hw: np.ndarray) -> Found:
        """(B, 3, H, W) images and (B, 2) int64, their heights and widths without padding -> detections."""


def load(path: str | Path, device: str | None = None, threads: int | None = None) -> Runtime:
    """Load a file that `ddetr export` has written, in the runtime that its suffix and content ask for.

    Args:
        path: ONNX (`.onnx`), OpenVINO (`.xml`, beside its `.bin`), `torch.export` or AOTInductor (both `.pt2`).
        device: 'cpu', 'cuda', ...; by default what the file was exported for, or the CPU.
        threads: Of the runtime on the CPU; its own choice by default.

    Raises:
        InputError: There is no such file, it is damaged or not by `ddetr export`, or its runtime is not installed.
    """
    path = Path(path)
    if path.suffix.lower() not in EXPORT_SUFFIXES:
        raise InputError(f'{path} is no exported file: their suffixes are {", ".join(EXPORT_SUFFIXES)}.')
    if not path.is_file():
        raise InputError(f'{path} does not exist: check the path.')
    module = importlib.import_module(f'ddetr.deployment.runtimes.{_runtime_of(path)}')
    return module.Runtime(path, device, threads)


def _runtime_of(path: Path) -> str:
    if (suffix := path.suffix.lower()) != '.pt2':
        return {'.onnx': 'onnx', '.xml': 'openvino'}[suffix]
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f'{path} cannot be read: it is truncated, or no .pt2 archive.') from error
    return 'aoti' if any('/aotinductor/' in name for name in names) else 'torch_export'


def read_info(text: str | None, path: Path) -> ExportInfo:
    """The record in a file's metadata. InputError if there is none, or one that cannot be used."""
    if text is None:
        raise InputError(f'{path} is no detector that `ddetr export` has written: it lacks its metadata.')
    try:
        return ExportInfo.from_json(text)
    except ValueError as error:
        raise InputError(f'{path} cannot be used: {error}.') from error
