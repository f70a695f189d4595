"""Input and output arrays of exported files, independent of the runtime."""

from typing import NamedTuple

import numpy as np

from ddetr.deployment.info import ExportInfo
from ddetr.utils.errors import InputError


class DetectionArrays(NamedTuple):
    """Detections in a batch of images, best first; see `ExportInfo`."""

    boxes: np.ndarray  # (B, N, 4) float32, x1 y1 x2 y2 in pixels of the input images
    scores: np.ndarray  # (B, N) float32, 0 for unused entries
    labels: np.ndarray  # (B, N) int64


def check_arrays(info: ExportInfo, path: str, images: np.ndarray, sizes_hw: np.ndarray) -> None:
    """Raise an InputError if the shape, dtype or size of the arrays does not fit the file."""
    dtype = np.uint8 if info.preprocessing == 'inside' else np.float32
    if images.ndim != 4 or images.shape[1] != 3 or images.dtype != dtype or 0 in images.shape:
        raise InputError(
            f'{path} expects images (B, 3, H, W) {dtype.__name__}, got {images.shape} {images.dtype}.'
        )
    if sizes_hw.shape != (len(images), 2) or sizes_hw.dtype != np.int64:
        raise InputError(
            f'{path} expects sizes_hw ({len(images)}, 2) int64, got {sizes_hw.shape} {sizes_hw.dtype}.'
        )
    for side, fixed, given in (
        ('height', info.height, images.shape[2]),
        ('width', info.width, images.shape[3]),
    ):
        if fixed is not None and given != fixed:
            raise InputError(
                f'{path} was exported for a {side} of {fixed} pixels, got {given}: pad or resize the images.'
            )
        if given % info.multiple_of:
            raise InputError(
                f'{path} needs a {side} that is a multiple of {info.multiple_of} pixels, got {given}: pad the images.'
            )
    if (sizes_hw < 1).any() or (sizes_hw > images.shape[2:]).any():
        raise InputError(
            f'sizes_hw has values outside 1 to {images.shape[2]} x {images.shape[3]} (h x w), the size of the images.'
        )


def lengthen(array: np.ndarray, length: int) -> np.ndarray:
    """Pad (B, n, ...) with zeros to (B, length, ...)."""
    missing = length - array.shape[1]
    return np.pad(array, [(0, 0), (0, missing)] + [(0, 0)] * (array.ndim - 2)) if missing else array
