"""Checks of boxes: numeric values, position in the image, size and overlap."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from .checks import check
from .evidence import NEAR_IOU, Boxes, Evidence, where
from .faults import Example, Picture

OUTSIDE_PX = 1.0  # tolerance for rounding and for counting pixels from 0 or 1
TINY_PX = 2.0
WHOLE = 0.98  # fraction of the image's width and height that counts as covering it
SAME_IOU = 0.9  # of duplicate boxes of one class; a parent holding a child in COCO reaches 0.89
TWO_CLASSES_IOU = 0.9  # of boxes of different classes on one object
CROWD_SHARE = 0.1  # fraction of a split's boxes; 1% in COCO
METRIC_MAX = 100  # detections per image that COCO's metric evaluates
READING_SHARE = 0.1  # fraction of a split's boxes that do not fit as written
NUMBERS = {
    'coco': 'x y width height',
    'voc': 'xmin ymin xmax ymax',
    'yolo': 'centre x, centre y, width, height',
}


@check(
    'box that is not a number', 'error',
    consequence='Training fails when it reads the annotation file, or skips the box.',
    cure='Find the tool that wrote it; remove the box.',
    fix='drops the box',
)  # fmt: skip
def _nan(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        for index in np.flatnonzero(~np.isfinite(boxes.corners).all(axis=1)):
            written = boxes.flat[index].written
            fractions = (
                boxes.split.format == 'yolo' and np.isfinite(written).all()
            )  # the image size is unknown
            if not fractions and not _is_text(boxes, int(index)):
                yield boxes.example(int(index))


@check(
    'box stored as text', 'error',
    consequence='Training fails when it reads the annotation file.',
    cure='Write numbers without quotation marks.',
    fix='writes numbers',
)  # fmt: skip
def _text(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        for index in np.flatnonzero(~np.isfinite(boxes.corners).all(axis=1)):
            if _is_text(boxes, int(index)):
                yield boxes.example(int(index))


def _is_text(boxes: Boxes, index: int) -> bool:
    """Whether a COCO box has strings instead of numbers; the other formats are text anyway."""
    return boxes.split.format == 'coco' and any(isinstance(v, str) for v in boxes.flat[index].written)


@check(
    'fractions instead of pixels', 'error',
    consequence='All boxes shrink to less than a pixel in the top left corner: AP stays 0.',
    cure='Multiply x and width by the width of the image, y and height by its height.',
    fix='multiplies them',
    spoils=True,
)  # fmt: skip
def _normalised(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        yield from boxes.examples(boxes.normalised)


@check(
    'pixels instead of fractions', 'error',
    consequence='The boxes lie far outside the image: AP stays 0.',
    cure='Divide x and width by the width of the image, y and height by its height.',
    fix='divides them',
    spoils=True,
)  # fmt: skip
def _pixels(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        yield from boxes.examples(boxes.in_pixels)


class Reading(NamedTuple):
    """A possible interpretation of the four numbers of a box."""

    name: str
    corners: Callable[[np.ndarray], np.ndarray]  # (N, 4) as written -> (N, 4) x1 y1 x2 y2, in the same unit


def _from_corner(v: np.ndarray) -> np.ndarray:
    return np.concatenate([v[:, :2], v[:, :2] + v[:, 2:]], axis=1)


def _from_centre(v: np.ndarray) -> np.ndarray:
    return np.concatenate([v[:, :2] - v[:, 2:] / 2, v[:, :2] + v[:, 2:] / 2], axis=1)


CORNERS = Reading('x1 y1 x2 y2', lambda v: v)
SIZED = Reading('x y width height', _from_corner)
CENTRED = Reading('centre x, centre y, width, height', _from_centre)
TURNED = Reading('y1 x1 y2 x2', lambda v: v[:, [1, 0, 3, 2]])
TURNED_SIZED = Reading('y x height width', lambda v: _from_corner(v[:, [1, 0, 3, 2]]))
OTHER_READINGS = {
    'coco': (CORNERS, CENTRED, TURNED_SIZED),
    'voc': (SIZED, CENTRED, TURNED),
    'yolo': (CORNERS, SIZED),
}


def misread(boxes: Boxes) -> tuple[np.ndarray, Reading] | None:
    """Return a mask (N,) of boxes that fit only under another interpretation, and that interpretation; None if none do.

    One image is enough to detect corners in COCO format, where two of four numbers are wrong; any other
    interpretation must hold for the whole split.
    """
    candidates = boxes.judged & np.isfinite(boxes.image_size).all(axis=1)
    wrong = candidates & ~_fits(boxes.corners, boxes.image_size, tolerance=0.05)
    if not wrong.any():
        return None
    unit = boxes.image_size if boxes.split.format == 'yolo' else np.ones_like(boxes.image_size)
    written = boxes.written * np.tile(unit, 2)  # pixels
    for reading in OTHER_READINGS[boxes.split.format]:
        sound = _fits(reading.corners(written), boxes.image_size, tolerance=0.0)
        total = candidates.sum()
        if wrong.sum() >= max(5, READING_SHARE * total) and (sound & candidates).sum() >= 0.99 * total:
            return candidates, reading
        if reading is CORNERS:
            images = _images_all_of(boxes, sound, wrong)
            if images.any():
                return candidates & images[boxes.image], reading
    return None


def _images_all_of(boxes: Boxes, sound: np.ndarray, wrong: np.ndarray) -> np.ndarray:
    """(I,) bool, images whose boxes are all `sound` and at least half `wrong` as currently interpreted."""
    count, good, bad = (
        np.bincount(boxes.image, weights=mask, minlength=len(boxes.split.images))
        for mask in (np.ones(len(boxes.flat)), sound, wrong)
    )
    return (bad > 0) & (good == count) & (2 * bad >= count)


def _fits(corners: np.ndarray, image_size: np.ndarray, tolerance: float) -> np.ndarray:
    """(N,) bool, boxes with positive area inside their image, up to a fraction `tolerance` of its sides."""
    slack = np.maximum(tolerance * image_size, OUTSIDE_PX)
    low, high = corners[:, :2], corners[:, 2:]
    return np.all((low >= -slack) & (high <= image_size + slack) & (high > low), axis=1)


@check(
    'boxes in the wrong coordinate order', 'error',
    consequence='The boxes have wrong positions and sizes: they fit their images only in another coordinate order.',
    cure='Write the coordinates in the order of the format.',
    fix='converts them',
    spoils=True,
)  # fmt: skip
def _other_reading(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        if (found := misread(boxes)) is not None:
            mask, reading = found
            expected = NUMBERS[boxes.split.format]
            yield from boxes.examples(mask, f': looks like {reading.name} where {expected} belong')


@check(
    'box without area', 'warning',
    consequence='It contains no object; training skips it or, in VOC format, learns a single pixel.',
    cure='Redraw or remove it.',
    fix='drops the box',
)  # fmt: skip
def _no_area(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        yield from boxes.examples(boxes.judged & boxes.flat_shape)


def _overlap(boxes: Boxes) -> np.ndarray:
    """(N, 2) float64, width and height in pixels of each box's part inside its image; negative if outside."""
    low = np.maximum(boxes.corners[:, :2], 0)
    return np.minimum(boxes.corners[:, 2:], boxes.image_size) - low


@check(
    'box outside its image', 'warning',
    consequence='It contains no object; training skips it.',
    cure='Check whether the boxes belong to another image size; remove the box.',
    fix='drops the box',
)  # fmt: skip
def _outside(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        yield from boxes.examples(boxes.judged & boxes.solid & (_overlap(boxes) <= 0).any(axis=1))


@check(
    'box partly outside its image', 'warning',
    consequence='Training clips it; evaluation uses the whole box, which no detection can match.',
    cure='Clip it if it was drawn imprecisely; many such boxes point to a wrong image size or coordinate order.',
    fix='clips the box',
)  # fmt: skip
def _partly_outside(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        beyond = np.maximum(-boxes.corners[:, :2], boxes.corners[:, 2:] - boxes.image_size).max(axis=1)
        mask = boxes.judged & boxes.solid & (beyond > OUTSIDE_PX) & (_overlap(boxes) > 0).all(axis=1)
        for index in np.flatnonzero(mask):
            yield boxes.example(int(index), f', {beyond[index]:.4g} pixels outside', float(beyond[index]))


@check(
    'box smaller than two pixels', 'warning',
    consequence='It cannot be detected, and its box losses are noise.',
    cure='Remove it: most such boxes are accidental clicks.',
    fix='drops the box',
)  # fmt: skip
def _tiny(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        side = boxes.extent.min(axis=1)
        yield from boxes.examples(boxes.judged & boxes.solid & (side < TINY_PX), weights=-side)


@check(
    'box that covers the whole image', 'note',
    consequence='Correct for a close-up, wrong if it means "somewhere in this image".',
    cure='Look at the pictures.',
)  # fmt: skip
def _whole(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        covers = (_overlap(boxes) >= WHOLE * boxes.image_size).all(axis=1)
        yield from boxes.examples(boxes.judged & boxes.solid & covers)


def duplicates(boxes: Boxes, min_iou: float = SAME_IOU) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """`close_pairs` of the same class, with each later box only once."""
    first, later, iou = boxes.close_pairs
    same = (boxes.category[first] == boxes.category[later]) & (iou >= min_iou)
    order = np.lexsort((-iou[same], later[same]))  # the nearest first
    _, at = np.unique(later[same][order], return_index=True)
    first, later, iou = (values[same][order][at] for values in (first, later, iou))
    return first, later, iou


def _pairs(evidence: Evidence, low: float, high: float) -> Iterator[Example]:
    for boxes in evidence.boxes:
        for first, later, iou in zip(*duplicates(boxes, low), strict=True):
            if iou < high:
                why = f', IoU {iou:.2f} with {boxes.flat[first].where}'
                yield boxes.example(int(later), why, float(iou), [int(first)])


@check(
    'duplicate box',
    'warning',
    consequence='One of the two always counts as missed, and the detector learns to predict duplicates.',
    cure='Remove one of them.',
    fix='drops the later box',
)
def _duplicated(evidence: Evidence) -> Iterator[Example]:
    return _pairs(evidence, SAME_IOU, np.inf)


@check(
    'nearly coinciding boxes of one class',
    'note',
    consequence='If it is one duplicate box, one of them always counts as missed.',
    cure='Look at the pictures: they may be two overlapping objects.',
)
def _coinciding(evidence: Evidence) -> Iterator[Example]:
    return _pairs(evidence, NEAR_IOU, SAME_IOU)


@check(
    'object with boxes of two classes', 'note',
    consequence='The detector learns contradictory classes for one object.',
    cure='Keep one class, unless the classes are meant to overlap.',
)  # fmt: skip
def _two_classes(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        for first, later, iou in zip(*boxes.close_pairs, strict=True):
            if iou >= TWO_CLASSES_IOU and boxes.category[first] != boxes.category[later]:
                other = f'{boxes.flat[first].where} ({boxes.class_name(int(first))})'
                yield boxes.example(int(later), f', IoU {iou:.2f} with {other}', float(iou), [int(first)])


@check(
    'area differs from the box', 'warning',
    consequence='Evaluation uses it to classify objects as small, medium or large.',
    cure='Write the area of the mask or of the box in square pixels.',
    fix='writes the area of the box',
)  # fmt: skip
def _area(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        areas = [np.nan if box.area is None else box.area for box in boxes.flat]
        area = np.array(areas, dtype=np.float64)
        mask = boxes.judged & boxes.solid & ((area <= 0) | (area > 1.02 * boxes.area + 1))
        for index in np.flatnonzero(mask):
            yield boxes.example(int(index), f', area {area[index]:.6g}')


@check(
    'many crowd regions or difficult objects', 'warning',
    consequence='Training ignores them, and evaluation does not count detections of them.',
    cure='Set iscrowd and difficult to 0 for objects to be detected.',
)  # fmt: skip
def _crowds(evidence: Evidence) -> Iterator[Example]:
    for boxes in evidence.boxes:
        crowds = boxes.crowds
        if crowds.sum() > CROWD_SHARE * len(crowds):
            first = boxes.example(int(np.flatnonzero(crowds)[0]))
            text = f'{boxes.split.source}: {crowds.sum()} of {len(crowds)} boxes, the first is {first.text}'
            yield first._replace(text=text)


@check(
    'more objects than queries', 'warning',
    consequence='Each query gives at most one detection: the remaining objects are missed, in training too.',
    cure='Raise model.num_queries above the number of objects, or tile the images.',
)  # fmt: skip
def _crowded(evidence: Evidence) -> Iterator[Example]:
    return _full_images(evidence, evidence.limits.num_queries, 'queries')


@check(
    'more objects than the metric counts', 'note',
    consequence=f'COCO\'s metric takes the {METRIC_MAX} best detections of an image: recall on it stays below 1.',
    cure='Keep it in mind when you read the AP, or tile the images.',
)  # fmt: skip
def _beyond_metric(evidence: Evidence) -> Iterator[Example]:
    return _full_images(evidence, METRIC_MAX, 'detections')


def _full_images(evidence: Evidence, limit: int, what: str) -> Iterator[Example]:
    for boxes in evidence.boxes:
        per_image = np.bincount(boxes.image[~boxes.crowds], minlength=len(boxes.split.images))
        for i in np.flatnonzero(per_image > limit):
            image, n = boxes.split.images[i], int(per_image[i])
            picture = Picture(image.path, tuple(box.corners for box in image.boxes))
            yield Example(f'{where(boxes.split, image)}: {n} objects, {limit} {what}', (picture,), n)
