"""Convert datasets between annotation formats."""

import random
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ddetr.datasets.formats.find import find_dataset
from ddetr.datasets.formats.options import class_names
from ddetr.datasets.formats.records import WrittenSplit
from ddetr.datasets.formats.write import write_dataset
from ddetr.utils.errors import InputError


class Converted(NamedTuple):
    """Result of a conversion."""

    summary: str  # of the source
    classes: tuple[str, ...]
    images: Mapping[str, int]  # number by split, as read
    notes: tuple[str, ...]  # messages about skipped records and decisions


def convert_dataset(
    data: str | Path,
    to: str,
    out: str | Path,
    images: str = 'copy',
    val_fraction: float = 0.0,
    format: str | None = None,
) -> Converted:
    """Convert the dataset in a folder to another format; writes nothing if it fails.

    Args:
        data: See `find_dataset`.
        to: 'coco', 'voc' or 'yolo'.
        out: Folder that does not exist yet or is empty.
        images: 'copy', 'symlink' or 'hardlink'.
        val_fraction: Fraction of the training images to hold out as `val`, chosen at random but reproducibly; for
            datasets without a validation split.
        format: Format of the source, if the folder contains several.

    Raises:
        InputError: See `find_dataset` and `write_dataset`; also if `val_fraction` is given for a dataset with a
            validation split, or leaves a split without images.
    """
    found = find_dataset(data, format)
    splits = {name: split.read() for name, split in found.splits.items()}
    if val_fraction:
        splits = _hold_out(splits, val_fraction)
    classes, notes = class_names(splits)
    written = write_dataset(splits, classes, to, Path(out), images)
    counts = {name: len(split.images) for name, split in splits.items()}
    return Converted(found.summary(), classes, counts, (*found.notes, *notes, *written))


def _hold_out(splits: dict[str, WrittenSplit], fraction: float) -> dict[str, WrittenSplit]:
    if 'val' in splits or 'train' not in splits:
        raise InputError(
            f'--val-fraction {fraction}: the dataset already has the splits {", ".join(splits)}.'
        )
    train = splits['train']
    number = round(len(train.images) * fraction)
    if not 0 < number < len(train.images):
        raise InputError(
            f'--val-fraction {fraction} of {len(train.images)} images leaves {len(train.images) - number} to train on '
            f'and {number} to validate on: give a fraction between 0 and 1 that leaves images for both.'
        )
    held_out = set(random.Random(0).sample(range(len(train.images)), number))
    parts = (
        [image for i, image in enumerate(train.images) if (i in held_out) == held] for held in (False, True)
    )
    kept, taken = (train._replace(images=tuple(part)) for part in parts)
    others = {name: split for name, split in splits.items() if name != 'train'}
    return {'train': kept, 'val': taken._replace(name='val', unreadable=()), **others}
