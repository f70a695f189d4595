"""Checks for boxes and images that are unusual for their class."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from .checks import check
from .evidence import Boxes, Evidence, where
from .faults import Example, Picture

OUTLIER = 6.0  # robust standard deviations of log area; must also be a minimum factor in area
MIN_SIGMA = 0.25  # of log area, for classes with almost no spread
BORDER_PX = 2
MIN_BOXES = 20  # needed for statistics of a class
UNRESOLVED_SHARE = 0.25  # fraction of a class's boxes
USUAL_SHARE = 0.9  # fraction of images with a class above which its absence is reported
USUAL_IMAGES = 50
FEW = 0.25  # fraction of the typical number of boxes of a class in an image


class Usual(NamedTuple):
    """Statistics of the boxes of a class."""

    log_area: float  # median of log area in square pixels
    sigma: float  # robust standard deviation of log area


def _usual_sizes(evidence: Evidence) -> dict[str, Usual]:
    logs: dict[str, list[np.ndarray]] = {}
    for boxes in evidence.boxes:
        good = boxes.judged & boxes.solid
        for index, category in enumerate(boxes.split.categories):
            area = boxes.area[good & (boxes.category == index)]
            logs.setdefault(category.name, []).append(np.log(area))
    usual = {}
    for name, parts in logs.items():
        values = np.concatenate(parts)
        if len(values) >= MIN_BOXES:
            median = float(np.median(values))
            spread = 1.4826 * float(
                np.median(np.abs(values - median))
            )  # equals the standard deviation for a normal distribution
            usual[name] = Usual(median, max(spread, MIN_SIGMA))
    return usual


def _at_border(boxes: Boxes) -> np.ndarray:
    """(N,) bool, boxes that touch the image border, where objects may be truncated."""
    low, high = boxes.corners[:, :2], boxes.corners[:, 2:]
    return (low.min(axis=1) <= BORDER_PX) | ((boxes.image_size - high).min(axis=1) <= BORDER_PX)


@check(
    'unusual size for its class', 'warning',
    consequence='The box often has the wrong class or does not show such an object.',
    cure='Look at the pictures and correct the class or the box.',
)  # fmt: skip
def _outliers(evidence: Evidence) -> Iterator[Example]:
    usual = _usual_sizes(evidence)
    for boxes in evidence.boxes:
        good, cut = boxes.judged & boxes.solid, _at_border(boxes)
        for index, category in enumerate(boxes.split.categories):
            if category.name not in usual:
                continue
            median, sigma = usual[category.name]
            members = np.flatnonzero(good & (boxes.category == index))
            off = np.log(boxes.area[members]) - median
            far = (
                (np.abs(off) > OUTLIER * sigma)
                & (np.abs(off) > np.log(OUTLIER))
                & ~((off < 0) & cut[members])
            )
            for i, z in zip(members[far], off[far], strict=True):
                side, common = np.sqrt(boxes.area[i]), np.exp(median / 2)
                yield boxes.example(
                    int(i), f', side {side:.0f} pixels, typically {common:.0f}', abs(float(z)) / sigma
                )


def _scales(evidence: Evidence, boxes: Boxes) -> np.ndarray:
    """(N,) float64, scale factor of each box's image at the largest training size."""
    fits = [
        np.minimum(long / boxes.image_size.max(axis=1), short / boxes.image_size.min(axis=1))
        for long, short in evidence.limits.sizes
    ]
    return np.max(fits, axis=0)


def _unresolved(evidence: Evidence, boxes: Boxes) -> tuple[np.ndarray, np.ndarray]:
    """(N,) bool, boxes smaller than half a cell of the finest feature level; (N,) float64, resized shorter side."""
    side = boxes.extent.min(axis=1) * _scales(evidence, boxes)
    return boxes.judged & boxes.solid & (side < evidence.limits.stride / 2), side


@check(
    'box too small at the training size', 'note',
    consequence='At the training size it is smaller than half a cell of the finest feature level: rarely detected.',
    cure='Train with larger images, or tile them.',
)  # fmt: skip
def _too_small(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        mask, side = _unresolved(evidence, boxes)
        for i in np.flatnonzero(mask):
            why = f': {side[i]:.1f} pixels when resized, feature stride {evidence.limits.stride}'
            yield boxes.example(int(i), why, -float(side[i]))


@check(
    'class too small at the training size', 'warning',
    consequence='Resizing removes most of the detail of these objects: their AP stays low.',
    cure='Train with larger images, tile them, or add a finer feature level.',
)  # fmt: skip
def _class_too_small(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        mask, _ = _unresolved(evidence, boxes)
        known = boxes.category >= 0
        n = len(boxes.split.categories)
        small, total = (np.bincount(boxes.category[m], minlength=n) for m in (mask & known, known))
        for index in np.flatnonzero((small > 0) & (small >= UNRESOLVED_SHARE * total)):
            name = boxes.split.categories[index].name
            of_it = mask & (boxes.category == index)
            picture = boxes.example(int(np.flatnonzero(of_it)[0])).pictures
            yield Example(f'{boxes.split.source}: {name}, {small[index]} of {total[index]} boxes', picture)


@check(
    'image with fewer boxes of a class than usual', 'note',
    consequence='If objects are present but not annotated, the detector learns to ignore them.',
    cure='Look for objects without annotation in the pictures.',
)  # fmt: skip
def _sparse(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        count = len(boxes.split.images)
        if count < USUAL_IMAGES:
            continue
        for index, category in enumerate(boxes.split.categories):
            per_image = np.bincount(boxes.image[boxes.category == index], minlength=count)
            median = float(np.median(per_image))
            if (per_image > 0).mean() < USUAL_SHARE or median < 1:
                continue
            for i in np.flatnonzero((per_image == 0) | (per_image < FEW * median)):
                image, n = boxes.split.images[i], per_image[i]
                drawn = Picture(image.path, tuple(box.corners for box in image.boxes))
                text = f'{where(boxes.split, image)}: {n} boxes of {category.name}, typically {median:.0f}'
                yield Example(text, (drawn,), median - float(n))
