"""Input of the checks: a dataset's records, as objects and arrays, with facts about its files and images."""

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

NEAR_IOU = 0.8  # of boxes that may belong to the same object


class Limits(NamedTuple):
    """Limits of the training setup that the dataset is meant for."""

    num_queries: int = 300
    sizes: tuple[tuple[int, int], ...] = (
        (1333, 800),
    )  # maximum long and short side in pixels after resizing
    stride: int = 8  # of the finest feature level, in pixels of the resized image


@dataclass(frozen=True)
class Boxes:
    """All N boxes of a split, in the order of its images."""

    split: WrittenSplit
    flat: tuple[WrittenBox, ...]
    image: np.ndarray  # (N,) int64, index into the split's images
    category: np.ndarray  # (N,) int64, index into the split's categories, -1 if unknown
    corners: np.ndarray  # (N, 4) float64, x1 y1 x2 y2 in pixels; NaN if not numeric
    sizes: np.ndarray  # (I, 2) float64, width and height of each image; NaN if unknown

    @functools.cached_property
    def extent(self) -> np.ndarray:
        """(N, 2) float64, width and height of each box in pixels; zero or negative if it has no area."""
        return self.corners[:, 2:] - self.corners[:, :2]

    @functools.cached_property
    def area(self) -> np.ndarray:
        """(N,) float64, area in square pixels; 0 if a box has none, NaN if it is not numeric."""
        return np.clip(self.extent, 0, None).prod(axis=1)

    @functools.cached_property
    def image_size(self) -> np.ndarray:
        """(N, 2) float64, width and height of each box's image."""
        return self.sizes[self.image]

    @functools.cached_property
    def written(self) -> np.ndarray:
        """(N, 4) float64, the four numbers of each box as written; NaN if there are not four numbers."""
        rows = [box.written if len(box.written) == 4 else (np.nan,) * 4 for box in self.flat]
        try:
            return np.array(rows, dtype=np.float64).reshape(-1, 4)  # also parses VOC's text
        except (TypeError, ValueError):
            clean = [[number(value) for value in row] for row in rows]
            return np.array(clean, dtype=np.float64).reshape(-1, 4)

    @functools.cached_property
    def flat_shape(self) -> np.ndarray:
        """(N,) bool, boxes without width or height; in VOC, which includes the last pixel, up to 1 pixel."""
        return self.extent.min(axis=1) <= (1 if self.split.format == 'voc' else 0)

    @functools.cached_property
    def solid(self) -> np.ndarray:
        """(N,) bool, boxes with finite numbers and positive area."""
        return np.isfinite(self.corners).all(axis=1) & ~self.flat_shape

    @functools.cached_property
    def normalised(self) -> np.ndarray:
        """(N,) bool, boxes written as fractions of the image in a format that uses pixels."""
        if self.split.format == 'yolo':
            return np.zeros(len(self.flat), dtype=bool)
        fractions = (self.written != np.round(self.written)).any(axis=1)  # 0 0 1 1 is one pixel
        inside = ((self.written >= 0) & (self.written <= 1)).all(axis=1)
        return fractions & inside & (self.image_size > 4).all(axis=1)

    @functools.cached_property
    def in_pixels(self) -> np.ndarray:
        """(N,) bool, boxes in YOLO files whose numbers are too large to be fractions of an image."""
        if self.split.format != 'yolo':
            return np.zeros(len(self.flat), dtype=bool)
        return (np.nan_to_num(self.written) > 2).any(axis=1)

    @functools.cached_property
    def judged(self) -> np.ndarray:
        """(N,) bool, numeric boxes in the right unit, whose position and size can be checked."""
        return np.isfinite(self.corners).all(axis=1) & ~self.normalised & ~self.in_pixels

    @functools.cached_property
    def crowds(self) -> np.ndarray:
        """(N,) bool, crowd regions and difficult objects, which training and evaluation ignore."""
        return np.array([box.iscrowd or box.difficult for box in self.flat], dtype=bool)

    @functools.cached_property
    def close_pairs(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Pairs of boxes in one image with IoU >= NEAR_IOU: (P,) int64 first, (P,) int64 later, (P,) float64 IoU."""
        order = np.flatnonzero(self.judged & self.solid & (self.category >= 0) & ~self.crowds)
        image, corners, area = self.image[order], self.corners[order], self.area[order]
        found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        first = np.arange(len(order))
        for shift in range(1, len(order)):  # compare each box with the one `shift` positions later
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
        """Yield one example for each box in a mask (N,) bool."""
        for i in np.flatnonzero(mask):
            yield self.example(int(i), why, float(weights[i]) if weights is not None else 0.0)

    def example(self, index: int, why: str = '', weight: float = 0.0, others: Sequence[int] = ()) -> Example:
        """Return an example that shows one box and optionally others in the same image."""
        image = self.split.images[self.image[index]]
        boxes = tuple(self.flat[i].corners for i in (index, *others))
        return Example(f'{self.name(index)}{why}', (Picture(image.path, boxes),), weight)

    def name(self, index: int) -> str:
        """Describe a box by file, record, class and numbers."""
        box, image = self.flat[index], self.split.images[self.image[index]]
        width, height = self.image_size[index]
        of_image = f', image {width:.0f} x {height:.0f}' if np.isfinite(width) else ''
        numbers = ' '.join(map(_short, box.written[:6])) + ' ...' * (len(box.written) > 6)
        return f'{where(self.split, image)}: {box.where} ({self.class_name(index)}) is {numbers}{of_image}'

    def class_name(self, index: int) -> str:
        """Return the name of a box's category, or the raw value if it is unknown."""
        category = self.category[index]
        return self.split.categories[category].name if category >= 0 else repr(self.flat[index].category)

    def counts(self) -> dict[str, int]:
        """Number of boxes per category name."""
        found = np.bincount(self.category[self.category >= 0], minlength=len(self.split.categories))
        totals: dict[str, int] = {}
        for category, n in zip(self.split.categories, found, strict=True):
            totals[category.name] = totals.get(category.name, 0) + int(n)
        return totals


@dataclass(frozen=True)
class Evidence:
    """Input of the checks."""

    splits: tuple[WrittenSplit, ...]
    boxes: tuple[Boxes, ...]  # one per split
    facts: dict[Path, ImageFacts] = field(default_factory=dict)  # empty if images were not opened
    limits: Limits = field(default_factory=Limits)

    def images(self) -> Iterator[tuple[WrittenSplit, WrittenImage]]:
        """Yield all images of all splits."""
        for split in self.splits:
            for image in split.images:
                yield split, image

    def opened(self) -> Iterator[tuple[WrittenSplit, WrittenImage, ImageFacts]]:
        """Yield all opened images with their facts."""
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
        """Near-duplicates of earlier images."""
        return near_copies(self.facts, self.splits_of)

    @functools.cached_property
    def folders(self) -> dict[Path, frozenset[str]]:
        """File names in each folder that contains images."""
        return {folder: file_names(folder) for folder in {path.parent for path in self.file_splits}}

    def exists(self, path: Path) -> bool:
        """Whether an image file exists, according to the folder listing."""
        return path.name in self.folders[path.parent]


def gather(splits: Sequence[WrittenSplit], facts: dict[Path, ImageFacts], limits: Limits) -> Evidence:
    """Convert a dataset's records to the input of the checks."""
    return Evidence(tuple(splits), tuple(_boxes_of(split, facts) for split in splits), facts, limits)


def where(split: WrittenSplit, image: WrittenImage) -> str:
    """Describe an image by file and record, for messages."""
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
    """Hashable key of an id of any JSON type; 1 and '1' are different ids."""
    return value if value is None or isinstance(value, (int, str)) else repr(value)


def _size(image: WrittenImage, facts: dict[Path, ImageFacts]) -> tuple[float, float]:
    found = image.size or image.header or (facts[image.path].upright_size if image.path in facts else None)
    width, height = (number(side) for side in found or (None, None))
    return (width, height) if width > 0 and height > 0 else (np.nan, np.nan)


def number(value: object) -> float:
    """Convert a number, possibly written as text (VOC, YOLO), to float; NaN for anything else."""
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return np.nan


def _short(value: object) -> str:
    return f'{value:.6g}' if isinstance(value, float) else str(value)


def file_names(folder: Path) -> frozenset[str]:
    """Return the names of all entries in a folder; none if it cannot be listed."""
    try:
        return frozenset(entry.name for entry in os.scandir(folder))
    except OSError:
        return frozenset()
