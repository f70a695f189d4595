"""Detection of boxes in the wrong units or coordinate order, which would train to an AP of zero."""

from collections.abc import Sequence

import numpy as np

from ddetr.datasets.formats.records import WrittenSplit
from ddetr.utils.errors import BoxUnitsError

FEWEST = 3  # boxes needed for a decision
FITTING = 0.95  # fraction of boxes inside their images under the alternative convention
OUTSIDE = 0.5  # fraction of boxes outside under the format's own convention
MARGIN = 1.0  # pixels


def check_units(split: WrittenSplit, sizes: Sequence[tuple[float, float]]) -> None:
    """Compare all boxes of a split with the sizes (width, height) of their images.

    Raises:
        BoxUnitsError: Most boxes are corners or normalised (COCO format) or in pixels (YOLO format).
    """
    if split.format == 'voc':
        return
    rows = [
        (*box.written, *size)
        for image, size in zip(split.images, sizes, strict=True)
        for box in image.boxes
        if len(box.written) == 4
    ]
    if len(rows) < FEWEST:
        return
    values = np.array(rows, dtype=float)  # (N, 6): the four numbers, width, height
    if fault := (_of_coco if split.format == 'coco' else _of_yolo)(values[:, :4], values[:, 4:]):
        raise BoxUnitsError(f'{split.source}: {fault}')


def _of_coco(boxes: np.ndarray, sizes: np.ndarray) -> str | None:
    first, second = boxes[:, :2], boxes[:, 2:]
    if np.nanmax(first + second) <= 1.0 and np.nanmax(sizes) > 1.0:
        return (
            f'all {len(boxes)} boxes lie within one pixel, so they seem to be normalised. "bbox" must be [x, y, width, '
            'height] in pixels: multiply by the size of the image.'
        )
    outside = (first + second > sizes + MARGIN).any(1)
    corners = ((second > first) & (second <= sizes + MARGIN)).all(1)
    if outside.mean() > OUTSIDE and corners.mean() >= FITTING:
        return (
            f'{int(outside.sum())} of {len(boxes)} boxes extend beyond their images, but would fit as corners (xyxy). '
            '"bbox" must be [x, y, width, height]: subtract the first corner from the second.'
        )
    return None


def _of_yolo(boxes: np.ndarray, sizes: np.ndarray) -> str | None:
    in_pixels = (boxes > 1.0 + MARGIN / np.maximum(np.tile(sizes, 2), 1.0)).any(1)
    if in_pixels.mean() > OUTSIDE:
        return (
            f'{int(in_pixels.sum())} of {len(boxes)} boxes have numbers above 1, so they seem to be in pixels. A line '
            'must be "class x y width height" with coordinates divided by the size of the image.'
        )
    return None
