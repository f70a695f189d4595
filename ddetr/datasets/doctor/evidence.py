"""A dataset as the checks see it: its records, the same as arrays, what the disk has, what the images say."""

import functools
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ddetr.datasets.formats.records import WrittenBox, WrittenImage, WrittenSplit

from .faults import Example, Picture
from .image_facts import ImageFacts
from .near_copies import Copy, near_copies

NEAR_IOU = 0.8  # of boxes that may be of one object


class Limits(NamedTuple):
    """What the training that the dataset is meant for can take."""

    num_queries: int = 300
    sizes: tuple[tuple[int, int], ...] = (
        (1333, 800),
    )  # long and short side in pixels that images are fitted into
    stride: int = 8  # of the finest feature level, in pixels of the resized image


@dataclass(frozen=True)
class Boxes:
    """All N boxes of a split, in the order of its images."""

    split: WrittenSplit
    flat: tuple[WrittenBox, ...]
    image: np.ndarray  # (N,) int64, index into the split's images
    category: np.ndarray  # (N,) int64, index into the split's categories, -1 for none of them
    corners: np.ndarray  # (N, 4) float64, x1 y1 x2 y2 in pixels; NaN where they are no numbers
    sizes: np.ndarray  # (I, 2) float64, width and height of each image; NaN where nothing says them

    @functools.cached_property
    def extent(self) -> np.ndarray:
        """(N, 2) float64, width and height of each box in pixels; not positive where it has no area."""
        return self.corners[:, 2:] - self.corners[:, :2]

    @functools.cached_property
    def area(self) -> np.ndarray:
        """(N,) float64, square pixels; 0 where a box has none, NaN where it has no numbers."""
        return np.clip(self.extent, 0, None).prod(axis=1)

    @functools.cached_property
    def image_size(self) -> np.ndarray:
        """(N, 2) float64, width and height of each box's image."""
        return self.sizes[self.image]

    @functools.cached_property
    def written(self) -> np.ndarray:
        """(N, 4) float64, the four numbers of each box as its file has them; NaN where it has others."""
        rows = [box.written if len(box.written) == 4 else (np.nan,) * 4 for box in self.flat]
        try:
            return np.array(rows, dtype=np.float64).reshape(-1, 4)  # of VOC's texts, too
        except (TypeError, ValueError):
            clean = [[number(value) for value in row] for row in rows]
            return np.array(clean, dtype=np.float64).reshape(-1, 4)

    @functools.cached_property
    def flat_shape(self) -> np.ndarray:
        """(N,) bool, boxes without width or height; VOC's last pixel belongs to the box, so one pixel is none."""
        return self.extent.min(axis=1) <= (1 if self.split.format == 'voc' else 0)

    @functools.cached_property
    def solid(self) -> np.ndarray:
        """(N,) bool, boxes of finite numbers with an area."""
        return np.isfinite(self.corners).all(axis=1) & ~self.flat_shape

    @functools.cached_property
    def normalised(self) -> np.ndarray:
        """(N,) bool, boxes written as fractions of the image where their format has pixels."""
        if self.split.format == 'yolo':
            return np.zeros(len(self.flat), dtype=bool)
        fractions = (self.written != np.round(self.written)).any(axis=1)  # 0 0 1 1 is one pixel
        inside = ((self.written >= 0) & (self.written <= 1)).all(axis=1)
        return fractions & inside & (self.image_size > 4).all(axis=1)

    @functools.cached_property
    def in_pixels(self) -> np.ndarray:
        """(N,) bool, boxes of a YOLO file that cannot be fractions of an image."""
        if self.split.format != 'yolo':
            return np.zeros(len(self.flat), dtype=bool)
        return (np.nan_to_num(self.written) > 2).any(axis=1)

    @functools.cached_property
    def judged(self) -> np.ndarray:
        """(N,) bool, boxes of numbers in the right unit, whose place and size can be judged."""
        return np.isfinite(self.corners).all(axis=1) & ~self.normalised & ~self.in_pixels

    @functools.cached_property
    def crowds(self) -> np.ndarray:
        """(N,) bool, crowd regions and objects marked difficult, which are neither trained on nor counted."""
        return np.array([box.iscrowd or box.difficult for box in self.flat], dtype=bool)

    @functools.cached_property
    def close_pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Boxes of one image of IoU NEAR_IOU and more: (P,) int64 first, (P,) int64 later, (P,) float64 IoU."""
        order = np.flatnonzero(self.judged & self.solid & (self.category >= 0) & ~self.crowds)
        image, corners, area = self.image[order], self.corners[order], self.area[order]
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        first = np.arange(len(order))
        for shift in range(1, len(order)):  # each box with the one that is `shift` later in the same image
            first = first[first + shift < len(order)]
            first = first[image[first] == image[first + shift]]
            if not len(first):
                break
            later = first + shift
            low = np.maximum(corners[first, :2], corners[later, :2])
            high = np.minimum(corners[first, 2:], corners[later, 2:])
            shared = np.clip(high - low, 0, None).prod(axis=1)
            iou = shared / (area[first] + area[later] - shared)
            near = iou >= NEAR_IOU
            found.append((order[first[near]], order[later[near]], iou[near]))
        parts = list(zip(*found, strict=True)) or [[], [], []]
        a, b, c = (np.concatenate([np.zeros(0), *part]) for part in parts)
        return a.astype(np.int64), b.astype(np.int64), c

    def examples(
        self, mask: np.ndarray, why: str = '', weights: np.ndarray | None = None
    ) -> Iterator[Example]:
        """One example for each box of a mask (N,) bool."""
        for i in np.flatnonzero(mask):
            yield self.example(int(i), why, float(weights[i]) if weights is not None else 0.0)

    def example(self, index: int, why: str = '', weight: float = 0.0, others: Sequence[int] = ()) -> Example:
        """An example that shows one box, and possibly others of the same image."""
        image = self.split.images[self.image[index]]
        boxes = tuple(self.flat[i].corners for i in (index, *others))
        return Example(f'{self.name(index)}{why}', (Picture(image.path, boxes),), weight)

    def name(self, index: int) -> str:
        """File, record, class and numbers of a box."""
        box, image = self.flat[index], self.split.images[self.image[index]]
        width, height = self.image_size[index]
        of_image = f', image {width:.0f} x {height:.0f}' if np.isfinite(width) else ''
        numbers = ' '.join(map(_short, box.written[:6])) + ' ...' * (len(box.written) > 6)
        return f'{where(self.split, image)}: {box.where} ({self.class_name(index)}) is {numbers}{of_image}'

    def class_name(self, index: int) -> str:
        """The name of a box's category, or what the file has in its place."""
        category = self.category[index]
        return self.split.categories[category].name if category >= 0 else repr(self.flat[index].category)

    def counts(self) -> dict[str, int]:
        """How many boxes each category's name has."""
        found = np.bincount(self.category[self.category >= 0], minlength=len(self.split.categories))
        totals: dict[str, int] = {}
        for category, n in zip(self.split.categories, found, strict=True):
            totals[category.name] = totals.get(category.name, 0) + int(n)
        return totals


@dataclass(frozen=True)
class Evidence:
    """What the checks look at."""

    splits: tuple[WrittenSplit, ...]
    boxes: tuple[Boxes, ...]  # one for each split
    facts: dict[Path, ImageFacts] = field(default_factory=dict)  # empty if images were not opened
    limits: Limits = field(default_factory=Limits)

    def images(self) -> Iterator[tuple[WrittenSplit, WrittenImage]]:
        """All images of all splits."""
        for split in self.splits:
            for image in split.images:
                yield split, image

    def opened(self) -> Iterator[tuple[WrittenSplit, WrittenImage, ImageFacts]]:
        """All images that were opened, with what they say."""
        for split, image in self.images():
            if image.path in self.facts:
                yield split, image, self.facts[image.path]

    @functools.cached_property
    def file_splits(self) -> dict[Path, list[str]]:
        """The splits that list each image file."""
        found: dict[Path, list[str]] = {}
        for split, image in self.images():
            found.setdefault(image.path, []).append(split.name)
        return found

    def splits_of(self, path: Path) -> frozenset[str]:
        """The names of the splits that list an image file."""
        return frozenset(self.file_splits[path])

    @functools.cached_property
    def near_copies(self) -> list[Copy]:
        """Images that show nearly the same as an earlier one."""
        return near_copies(self.facts, self.splits_of)

    @functools.cached_property
    def folders(self) -> dict[Path, frozenset[str]]:
        """The names of all files in the folders of the images."""
        return {folder: file_names(folder) for folder in {path.parent for path in self.file_splits}}

    def exists(self, path: Path) -> bool:
        """Whether an image's file is there, by its folder's listing."""
        return path.name in self.folders[path.parent]


def gather(splits: Sequence[WrittenSplit], facts: dict[Path, ImageFacts], limits: Limits) -> Evidence:
    """Put a dataset's records into arrays."""
    return Evidence(tuple(splits), tuple(_boxes_of(split, facts) for split in splits), facts, limits)


def where(split: WrittenSplit, image: WrittenImage) -> str:
    """File and record of an image, for messages."""
    return image.where if Path(image.file_name).stem in image.where else f'{image.where} ({image.file_name})'


def _boxes_of(split: WrittenSplit, facts: dict[Path, ImageFacts]) -> Boxes:
    key_of: dict[object, int] = {}
    for index, category in enumerate(split.categories):
        key_of.setdefault(id_key(category.key), index)
    flat = tuple(box for image in split.images for box in image.boxes)
    return Boxes(
        split,
        flat,
        np.repeat(np.arange(len(split.images)), [len(image.boxes) for image in split.images]),
        np.array([key_of.get(id_key(box.category), -1) for box in flat], dtype=np.int64),
        np.array([box.corners for box in flat], dtype=np.float64).reshape(-1, 4),
        np.array([_size(image, facts) for image in split.images], dtype=np.float64).reshape(-1, 2),
    )


def id_key(value: object) -> object:
    """An id for comparison: 1 and '1' are two, and what JSON may have in place of an id can be hashed."""
    return value if value is None or isinstance(value, (int, str)) else repr(value)


def _size(image: WrittenImage, facts: dict[Path, ImageFacts]) -> tuple[float, float]:
    found = image.size or image.header or (facts[image.path].upright_size if image.path in facts else None)
    width, height = (number(side) for side in found or (None, None))
    return (width, height) if width > 0 and height > 0 else (np.nan, np.nan)


def number(value: object) -> float:
    """The value of a number, which VOC and YOLO write as text; NaN for anything else."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return np.nan


def _short(value: object) -> str:
    return f'{value:.6g}' if isinstance(value, float) else str(value)


def file_names(folder: Path) -> frozenset[str]:
    """The names of everything in a folder; none if it cannot be listed."""
    try:
        return frozenset(entry.name for entry in os.scandir(folder))
    except OSError:
        return frozenset()
