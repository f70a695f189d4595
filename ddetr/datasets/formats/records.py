"""What annotation files say, before any of it is checked, clipped or renamed: one form for all formats."""

from pathlib import Path
from typing import NamedTuple

BoxXYXY = tuple[float, float, float, float]

# Decimals of a pixel: far finer than a text file's digits, and coarser than float64's rounding errors.
DECIMALS = 9


class Category(NamedTuple):
    """A class as a file lists it."""

    id: int | str | None  # as written; None where the format has names only (VOC)
    name: str

    @property
    def key(self) -> int | str:
        """What boxes of this class refer to: its id, or its name where there are no ids."""
        return self.name if self.id is None else self.id


class WrittenBox(NamedTuple):
    """One object as a file has it."""

    category: int | str | None  # the id or name that the file gives it, which may be of no category
    corners: BoxXYXY  # x1 y1 x2 y2 in pixels by the format's rules; neither clipped nor ordered, possibly NaN
    written: tuple  # the numbers as they stand in the file, by the format's own convention
    where: str  # for messages: "annotations[12] (id 7)", "object 3", "line 4"
    id: int | str | None = None  # COCO's annotation id
    iscrowd: bool = False
    difficult: bool = False  # VOC's
    area: float | None = None  # COCO's, square pixels


class WrittenImage(NamedTuple):
    """One image as a file has it."""

    file_name: str  # as written
    path: Path  # where it should be
    size: (
        tuple[int, int] | None
    )  # width, height in pixels by the annotation file; None where it says none (YOLO)
    boxes: tuple[WrittenBox, ...]
    where: str  # for messages: "train.json: images[3] (id 17)", "Annotations/a.xml"
    id: int | str | None = None  # COCO's image id; the name without suffix in the other formats
    header: tuple[int, int] | None = (
        None  # size by the image itself, where the boxes' pixels depend on it (YOLO)
    )


class WrittenSplit(NamedTuple):
    """One part of a dataset, such as its training images."""

    name: str  # 'train', 'val', 'test'
    format: str  # 'coco', 'voc', 'yolo'
    source: Path  # the annotation file, list of images or folder that it was read from
    categories: tuple[Category, ...]
    images: tuple[WrittenImage, ...]
    unreadable: tuple[str, ...] = ()  # one sentence for each file or record that could not be read at all
    lost: tuple[str, ...] = ()  # one sentence for each object of an image that is not listed (COCO)

    def ordered_categories(self) -> list[Category]:
        """By id, numbers before text; as they stand where there are no ids."""
        if any(category.id is None for category in self.categories):
            return list(self.categories)
        return sorted(self.categories, key=lambda c: (isinstance(c.id, str), c.id))


def xywh_of(box: WrittenBox, format: str) -> list[float]:
    """A box as x, y, width, height in pixels: exactly as in the file in COCO's format, else rounded to `DECIMALS`."""
    if format == 'coco':
        return list(box.written)
    x1, y1, x2, y2 = box.corners
    return [x1, y1, round(x2 - x1, DECIMALS), round(y2 - y1, DECIMALS)]


def clip_corners(corners: BoxXYXY, width: float, height: float) -> BoxXYXY | None:
    """The part of a box that lies inside the image; None where nothing of it does, or a corner is NaN."""
    x1, y1 = max(corners[0], 0.0), max(corners[1], 0.0)
    x2, y2 = min(corners[2], width), min(corners[3], height)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None
