"""Format-independent records of annotation files, before any checking, clipping or renaming."""

from pathlib import Path
from typing import NamedTuple

BoxXYXY = tuple[float, float, float, float]

# Decimals of a pixel: far finer than the digits in text files, coarser than float64 rounding errors.
DECIMALS = 9


class Category(NamedTuple):
    """A class as listed in a file."""

    id: int | str | None  # as written; None if the format has only names (VOC)
    name: str

    @property
    def key(self) -> int | str:
        """Value by which boxes refer to this class: its id, or its name in formats without ids."""
        return self.name if self.id is None else self.id


class WrittenBox(NamedTuple):
    """One object as written in a file."""

    category: int | str | None  # id or name as written; possibly not a known category
    corners: (
        BoxXYXY  # x1 y1 x2 y2 in pixels, decoded by the format's rules; not clipped or ordered, possibly NaN
    )
    written: tuple  # the numbers as written in the file, in the format's own convention
    where: str  # for messages: "annotations[12] (id 7)", "object 3", "line 4"
    id: int | str | None = None  # COCO's annotation id
    iscrowd: bool = False
    difficult: bool = False  # VOC
    area: float | None = None  # COCO, in square pixels


class WrittenImage(NamedTuple):
    """One image as listed in a file."""

    file_name: str  # as written
    path: Path  # expected location
    size: (
        tuple[int, int] | None
    )  # width, height in pixels from the annotation file; None if it has none (YOLO)
    boxes: tuple[WrittenBox, ...]
    where: str  # for messages: "train.json: images[3] (id 17)", "Annotations/a.xml"
    id: int | str | None = None  # COCO's image id; the name without suffix in the other formats
    header: tuple[int, int] | None = (
        None  # size from the image header, which box coordinates depend on (YOLO)
    )


class WrittenSplit(NamedTuple):
    """One split of a dataset, such as its training images."""

    name: str  # 'train', 'val', 'test'
    format: str  # 'coco', 'voc', 'yolo'
    source: Path  # annotation file, image list or folder that it was read from
    categories: tuple[Category, ...]
    images: tuple[WrittenImage, ...]
    unreadable: tuple[str, ...] = ()  # one message per unreadable file or record
    lost: tuple[str, ...] = ()  # one message per object whose image is not listed (COCO)

    def ordered_categories(self) -> list[Category]:
        """Return the categories by id, numbers before text; in file order if there are no ids."""
        if any(category.id is None for category in self.categories):
            return list(self.categories)
        return sorted(self.categories, key=lambda c: (isinstance(c.id, str), c.id))


def xywh_of(box: WrittenBox, format: str) -> list[float]:
    """Return x, y, width, height in pixels: exactly as written in COCO format, otherwise rounded to `DECIMALS`."""
    if format == 'coco':
        return list(box.written)
    x1, y1, x2, y2 = box.corners
    return [x1, y1, round(x2 - x1, DECIMALS), round(y2 - y1, DECIMALS)]


def clip_corners(corners: BoxXYXY, width: float, height: float) -> BoxXYXY | None:
    """Clip a box to the image; None if it lies entirely outside or a corner is NaN."""
    x1, y1 = max(corners[0], 0.0), max(corners[1], 0.0)
    x2, y2 = min(corners[2], width), min(corners[3], height)
    return (x1, y1, x2, y2) if x1 < x2 and y1 < y2 else None
