"""Placement of box labels without overlaps."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

REACH = 5  # maximum distance from the box, in label heights
COST_OF_LATER = 0.02  # cost of each later place in the order of preference, as a fraction of a covered box


class Place(NamedTuple):
    """Position of a label."""

    xyxy: np.ndarray  # (4,)
    attached: bool  # touches its box; otherwise it needs a connecting line


def place_labels(
    boxes_xyxy: np.ndarray, sizes_wh: np.ndarray, picture_wh: tuple[float, float]
) -> list[Place | None]:
    """Place the labels of boxes, in order, so that they cover no other label and little of other boxes.

    A label is placed at its box, outside if there is space; otherwise near it; otherwise not at all.

    Args:
        boxes_xyxy: Boxes (N, 4), in the picture's units.
        sizes_wh: Label sizes (N, 2); labels larger than the picture are not placed.
        picture_wh: Width and height of the picture; labels stay inside.

    Returns:
        One place per label, or None if all places near its box are taken.
    """
    places: list[Place | None] = []
    taken = np.zeros((0, 4))
    for number, size in enumerate(np.asarray(sizes_wh, dtype=float)):
        place = _place(number, np.asarray(boxes_xyxy, dtype=float), size, np.array(picture_wh, float), taken)
        places.append(place)
        if place is not None:
            taken = np.concatenate([taken, place.xyxy[None]])
    return places


def _place(
    number: int, boxes: np.ndarray, size: np.ndarray, picture: np.ndarray, taken: np.ndarray
) -> Place | None:
    if (size > picture).any():
        return None
    corners = _beside(boxes[number], size).clip(0, picture - size)
    free = corners[_overlaps(corners, size, taken).max(1, initial=0) <= 0]
    if len(free):
        sides = (boxes[:, 2:] - boxes[:, :2]).clip(1)
        covered = (_overlaps(free, size, boxes) / sides.prod(1)).sum(1)
        return _at(free[np.argmin(covered + COST_OF_LATER * np.arange(len(free)))], size, True)
    steps = np.arange(-REACH, REACH + 1) * size[1]
    offsets = np.stack(np.meshgrid(steps, steps), -1).reshape(-1, 2)
    start = boxes[number, :2] - [0, size[1]]
    corners = (start + offsets[np.argsort((offsets**2).sum(1), kind='stable')]).clip(0, picture - size)
    free = corners[_overlaps(corners, size, taken).max(1, initial=0) <= 0]
    return _at(free[0], size, False) if len(free) else None


def _beside(box: np.ndarray, size: np.ndarray) -> np.ndarray:
    """Return candidate upper left corners (K, 2) of a label at a box, preferred ones first."""
    (x1, y1, x2, y2), (w, h) = box, size
    right, bottom = max(x2 - w, x1), max(y2 - h, y1)
    corners = [(x1, y1 - h), (x1, y1), (right, y1 - h), (x1, y2), (right, y1), (right, y2)]
    corners += [(x1, bottom), (right, bottom), (x2, y1), (x1 - w, y1), (x2, bottom), (x1 - w, bottom)]
    corners += [(x, y1 - h) for x in np.arange(x1 + h, right, h)]
    corners += [(x, y) for y in np.arange(y1 + h, bottom, h) for x in (x1, right)]
    return np.array(corners[:200])  # limits the candidates of huge boxes


def _overlaps(corners: np.ndarray, size: np.ndarray, boxes: np.ndarray) -> np.ndarray:
    """Return the overlap areas (K, M) of labels at `corners` (K, 2) with `boxes` (M, 4)."""
    low = np.maximum(corners[:, None], boxes[None, :, :2])
    high = np.minimum(corners[:, None] + size, boxes[None, :, 2:])
    return (high - low).clip(0).prod(-1)


def _at(corner: np.ndarray, size: np.ndarray, attached: bool) -> Place:
    return Place(np.concatenate([corner, corner + size]), attached)


def label_text(name: str, score: float | None = None, limit: int = 32) -> str:
    """Return the text of a label: the class and, for detections, the score, such as `dog 0.87`."""
    name = shorten(name, limit)
    return name if score is None else f'{name} {score:.2f}'


def class_name(classes: Sequence[str], label: int) -> str:
    """Return the class name of a label, or a placeholder if it is unknown."""
    return classes[label] if label < len(classes) else f'class {label}'


def shorten(text: str, limit: int) -> str:
    """Shorten a name to at most `limit` characters."""
    return text if len(text) <= limit else text[: limit - 1] + '…'
