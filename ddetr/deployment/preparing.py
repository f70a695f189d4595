"""Preprocessing of images of any size to a padded batch for exported files, in numpy."""

from collections.abc import Sequence

import cv2
import numpy as np

from .info import ExportInfo


def prepare_batch(images: Sequence[np.ndarray], info: ExportInfo) -> tuple[np.ndarray, np.ndarray]:
    """Pad images and normalise them, unless the file does so itself.

    Args:
        images: Images (3, h, w) uint8, as returned by the test pipeline.
        info: Metadata of the file.

    Returns:
        Inputs of the file: `images` (B, 3, H, W) and `sizes_hw` (B, 2).
    """
    images = [fit(image, info.height, info.width) for image in images]
    sizes_hw = np.array([image.shape[1:] for image in images], dtype=np.int64)
    divisor = int(np.lcm(info.pad_size_divisor, info.multiple_of))
    height, width = (-(-int(side) // divisor) * divisor for side in sizes_hw.max(0))
    shape = (len(images), 3, info.height or height, info.width or width)
    if info.preprocessing == 'inside':
        batch = np.zeros(shape, dtype=np.uint8)
    else:
        batch = np.full(shape, info.pad_value, dtype=np.float32)
        images = [normalise(image, info) for image in images]
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image
    return batch, sizes_hw


def fit(image: np.ndarray, height: int | None, width: int | None) -> np.ndarray:
    """Shrink an image (3, h, w) if it exceeds a fixed height or width."""
    limits = [limit / side for limit, side in zip((height, width), image.shape[1:], strict=True) if limit]
    scale = min([1.0, *limits])
    if scale == 1:
        return image
    size = [max(int(side * scale), 1) for side in image.shape[:0:-1]]  # w, h
    resized = cv2.resize(image.transpose(1, 2, 0), size, interpolation=cv2.INTER_LINEAR)
    return np.ascontiguousarray(resized.transpose(2, 0, 1))


def normalise(image: np.ndarray, info: ExportInfo) -> np.ndarray:
    """Normalise an image (3, h, w) from uint8 to the model's float32 input."""
    image = image[::-1] if info.bgr_to_rgb else image
    image = image.astype(np.float32)
    if not info.mean:
        return image
    mean, std = (np.array(values, dtype=np.float32)[:, None, None] for values in (info.mean, info.std))
    return (image - mean) / std
