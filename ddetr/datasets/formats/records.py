"""What annotation files say, before any of it is checked, clipped or renamed: one form for all formats."""

from pathlib import Path
from typing import NamedTuple

from ddetr.datasets.coco_format import BoxXYXY


class Category(NamedTuple):
    """A class as a file lists it."""

    id: int | str | None  # as written; None where the format has names only (VOC)
    name: str


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
    id: int | str | None = None  # COCO's image id


class WrittenSplit(NamedTuple):
    """One part of a dataset, such as its training images."""

    name: str  # 'train', 'val', 'test'
    format: str  # 'coco', 'voc', 'yolo'
    source: Path  # the annotation file, list of images or folder that it was read from
    categories: tuple[Category, ...]
    images: tuple[WrittenImage, ...]
    unreadable: tuple[str, ...] = ()  # one sentence for each file or record that could not be read at all
