"""Boxes in other units or another order than the format says, which would train to an AP of zero."""

from collections.abc import Sequence

import numpy as np

from ddetr.datasets.formats.records import WrittenSplit
from ddetr.utils.errors import BoxUnitsError

FEWEST = 3  # boxes to judge by
FITTING = 0.95  # share of the boxes that would be inside their images in the other reading
OUTSIDE = 0.5  # share of the boxes that are outside in the format's own
MARGIN = 1.0  # pixels


def check_units(split: WrittenSplit, sizes: Sequence[tuple[float, float]]) -> None:
    """Compare all boxes of a split with the sizes of their images, (width, height) each.

    Raises:
        BoxUnitsError: Most boxes of a file in COCO's format are corners or normalised, or most in YOLO's are in pixels.
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
            f'all {len(boxes)} boxes lie within one pixel, they seem to be normalised: "bbox" is [x, y, width, '
            'height] in pixels, so multiply by the size of the image.'
        )
    outside = (first + second > sizes + MARGIN).any(1)
    corners = ((second > first) & (second <= sizes + MARGIN)).all(1)
    if outside.mean() > OUTSIDE and corners.mean() >= FITTING:
        return (
            f'{int(outside.sum())} of {len(boxes)} boxes reach out of their images, while as corners (xyxy) they would '
            'fit: "bbox" is [x, y, width, height], so subtract the first corner from the second.'
        )
    return None


def _of_yolo(boxes: np.ndarray, sizes: np.ndarray) -> str | None:
    in_pixels = (boxes > 1.0 + MARGIN / np.maximum(np.tile(sizes, 2), 1.0)).any(1)
    if in_pixels.mean() > OUTSIDE:
        return (
            f'{int(in_pixels.sum())} of {len(boxes)} boxes have numbers above 1, they seem to be in pixels: a line is '
            '"class x y width height", divided by the size of the image.'
        )
    return None
