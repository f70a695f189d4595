"""Checks of splits: empty splits, images in several splits, duplicates and near-duplicates."""

import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from ddetr.datasets.formats.records import WrittenImage, WrittenSplit

from .checks import check
from .evidence import Evidence, where
from .faults import Example, Picture
from .image_facts import SIDE
from .near_copies import equal_files

ROBOFLOW_COPY = re.compile(r'\.rf\.[0-9a-zA-Z]{8,}$')  # suffix of the stem of an augmented copy


@check(
    'empty split', 'error',
    consequence='There is nothing to train on or to evaluate with.',
    cure='Add images and boxes, or correct the paths of the annotation file and image folder.',
)  # fmt: skip
def _empty(evidence: Evidence) -> Iterator[Example]:
    for split, boxes in zip(evidence.splits, evidence.boxes, strict=True):
        if not len(boxes.flat):
            yield Example(f'{split.name} ({split.source}) has {len(split.images)} images and no box')


@check(
    'image without boxes', 'note',
    consequence='It is trained as background, which is correct only if it shows no object.',
    cure='Look for objects without annotation in the pictures.',
)  # fmt: skip
def _without_boxes(evidence: Evidence) -> Iterator[Example]:
    for split, image in evidence.images():
        if not image.boxes:
            yield Example(where(split, image), (Picture(image.path),))


@check(
    'image listed twice in a split', 'warning',
    consequence='The boxes of one entry are background for the other, and the image counts twice.',
    cure='List every image once, with all its boxes.',
    fix='merges the entries',
)  # fmt: skip
def _listed_twice(evidence: Evidence) -> Iterator[Example]:
    for split in evidence.splits:
        first: dict[Path, WrittenImage] = {}
        for image in split.images:
            if first.setdefault(image.path, image) is not image:
                text = f'{where(split, image)} is also {first[image.path].where}'
                yield Example(text, (Picture(image.path, tuple(box.corners for box in image.boxes)),))


@check(
    'image in several splits', 'warning',
    consequence='Evaluation on training images says nothing about new images.',
    cure='Leave it in one split.',
    fix='keeps it in test, else val',
)  # fmt: skip
def _overlap(evidence: Evidence) -> Iterator[Example]:
    for path, splits in evidence.file_splits.items():
        if len(set(splits)) > 1:
            yield Example(f'{path} is in {" and ".join(dict.fromkeys(splits))}', (Picture(path),))


def _across(evidence: Evidence, a: Path, b: Path) -> bool:
    """Whether two different files are in different splits."""
    return evidence.splits_of(a) != evidence.splits_of(b)


def _pair(evidence: Evidence, image: Path, original: Path, why: str, weight: float = 0.0) -> Example:
    splits = [' and '.join(dict.fromkeys(evidence.file_splits[path])) for path in (image, original)]
    text = f'{image} ({splits[0]}) {why} {original} ({splits[1]})'
    return Example(text, (Picture(image), Picture(original)), weight)


@check(
    'duplicate image', 'warning',
    consequence='It counts twice, and its two sets of boxes may be contradictory.',
    cure='Remove one of the two.',
    fix='drops the later one',
)  # fmt: skip
def _duplicates(evidence: Evidence) -> Iterator[Example]:
    for image, original in equal_files(evidence.facts).items():
        if not _across(evidence, image, original):
            yield _pair(evidence, image, original, 'has the same bytes as')


@check(
    'duplicate image in another split', 'warning',
    consequence='Evaluation on training images says nothing about new images.',
    cure='Leave it in one split.',
    fix='keeps it in test, else val',
)  # fmt: skip
def _leaked(evidence: Evidence) -> Iterator[Example]:
    for image, original in equal_files(evidence.facts).items():
        if _across(evidence, image, original):
            yield _pair(evidence, image, original, 'has the same bytes as')


def _near(evidence: Evidence, across: bool) -> Iterator[Example]:
    for copy in evidence.near_copies:
        if _across(evidence, copy.image, copy.original) == across:
            flipped = 'mirrored, ' if copy.mirrored else ''
            why = f'{flipped}shows nearly the same ({copy.bits} of {SIDE**2} bits differ) as'
            yield _pair(evidence, copy.image, copy.original, why, SIDE**2 - copy.bits)


@check(
    'near-duplicate image', 'note',
    consequence='It adds little, and similar images should have similar boxes.',
    cure='Compare the boxes of the two; subsample frames of one video.',
)  # fmt: skip
def _near_duplicates(evidence: Evidence) -> Iterator[Example]:
    return _near(evidence, across=False)


@check(
    'near-duplicate image in another split', 'warning',
    consequence='Evaluation on images similar to training images says little about new ones.',
    cure='Put images of one scene, video or slide into one split.',
    fix='keeps it in test, else val',
)  # fmt: skip
def _near_leaks(evidence: Evidence) -> Iterator[Example]:
    return _near(evidence, across=True)


@check(
    'augmented copies of one image in several splits', 'warning',
    consequence='Evaluation on training images says nothing about new images.',
    cure='Split the original images first, then augment only the training images.',
    fix='keeps them in test, else val',
)  # fmt: skip
def _augmented(evidence: Evidence) -> Iterator[Example]:
    for paths in augmented_copies(evidence.splits):
        if any(_across(evidence, paths[0], path) for path in paths[1:]):
            other = next(path for path in paths[1:] if _across(evidence, paths[0], path))
            yield _pair(evidence, paths[0], other, 'comes from the same image as')


def augmented_copies(splits: tuple[WrittenSplit, ...]) -> list[list[Path]]:
    """Groups of files whose names, as written by Roboflow, show that they come from the same image."""
    groups: dict[str, list[Path]] = defaultdict(list)
    for split in splits:
        for image in split.images:
            if ROBOFLOW_COPY.search(image.path.stem):
                groups[ROBOFLOW_COPY.sub('', image.path.stem)].append(image.path)
    return [list(dict.fromkeys(paths)) for paths in groups.values() if len(paths) > 1]
