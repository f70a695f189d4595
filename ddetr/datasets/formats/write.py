"""Writer of datasets in COCO, Pascal VOC and YOLO format, from format-independent records."""

import math
import os
import shutil
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ddetr.datasets.formats.headers import image_size, size_for_loading
from ddetr.datasets.formats.records import (
    DECIMALS,
    BoxXYXY,
    WrittenImage,
    WrittenSplit,
    xywh_of,
)
from ddetr.utils.errors import InputError
from ddetr.utils.files import UNFINISHED, write_json
from ddetr.utils.progress import track

RELATIVE_DIGITS = 15  # decimals of normalised coordinates


class OutBox(NamedTuple):
    """A box to write."""

    label: int  # index into the classes
    corners: BoxXYXY  # pixels
    xywh: tuple[float, ...]  # pixels, as in COCO format
    ignored: bool  # crowd or difficult
    area: float | None


class OutImage(NamedTuple):
    """An image to write."""

    name: str  # unique in the dataset, even without its suffix
    source: Path
    size: tuple[int, int]  # width, height in pixels
    boxes: tuple[OutBox, ...]
    id: int | str | None  # COCO id, if the source has one


class OutDataset(NamedTuple):
    """A dataset to write."""

    splits: dict[str, list[OutImage]]
    classes: tuple[str, ...]
    ids: tuple[int, ...]  # COCO category ids


def write_dataset(
    splits: Mapping[str, WrittenSplit], classes: tuple[str, ...], format: str, out: Path, images: str = 'copy'
) -> list[str]:
    """Write splits to a new folder; nothing is left behind if it fails.

    Boxes are written as they are, without clipping or rounding to whole pixels, and can be read back accurate to
    `DECIMALS` decimals of a pixel.

    Args:
        splits: Splits by name.
        classes: Names in the order of their labels. Boxes of other classes are skipped.
        format: 'coco', 'voc' or 'yolo'.
        out: Folder that does not exist yet or is empty.
        images: 'copy', 'symlink' or 'hardlink'.

    Returns:
        Messages about skipped records and about what the format cannot represent.

    Raises:
        InputError: The format is unknown, or `out` is not empty.
    """
    if format not in _FORMATS:
        raise InputError(f'unknown format {format!r}: choose one of {", ".join(_FORMATS)}.')
    if images not in _PLACE:
        raise InputError(f'unknown images={images!r}: choose one of {", ".join(_PLACE)}.')
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f'{out} already exists: choose a new folder.')
    notes: Counter[str] = Counter()
    dataset = _plan(splits, classes, format, notes)
    write, image_folder = _FORMATS[format]
    unfinished = out.absolute().with_name(f'.{out.name}.{os.getpid()}{UNFINISHED}')
    unfinished.mkdir(parents=True)
    try:
        write(dataset, unfinished)
        for split, listed in dataset.splits.items():
            folder = unfinished / image_folder.format(split=split)
            folder.mkdir(parents=True, exist_ok=True)
            for image in track(listed, f'{split}: images'):
                _PLACE[images](image.source.resolve(), folder / image.name)
        os.replace(unfinished, out)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)
    return [sentence.format(count) for sentence, count in notes.items() if count]


# ---------------------------------------------------------------------------------------------------------------- plan


def _plan(
    splits: Mapping[str, WrittenSplit], classes: tuple[str, ...], format: str, notes: Counter[str]
) -> OutDataset:
    taken: set[str] = set()
    planned: dict[str, list[OutImage]] = {}
    for name, split in splits.items():
        notes['{} records cannot be read and are skipped: check the dataset for details.'] += len(
            split.unreadable
        )
        label_of = {c.key: classes.index(c.name) for c in split.categories if c.name in classes}
        planned[name] = []
        for image in split.images:
            if size := _size(image, format, notes):
                boxes = tuple(_boxes(image, split.format, label_of, format, size, notes))
                own_id = image.id if split.format == 'coco' else None
                planned[name].append(
                    OutImage(_unique(image.path, name, taken), image.path, size, boxes, own_id)
                )
    return OutDataset(planned, classes, _category_ids(splits, classes))


def _category_ids(splits: Mapping[str, WrittenSplit], classes: tuple[str, ...]) -> tuple[int, ...]:
    """Return the COCO ids of the source if it has them, otherwise 1, 2, ..."""
    ids = {
        c.name: c.id
        for s in splits.values()
        if s.format == 'coco'
        for c in s.categories
        if isinstance(c.id, int)
    }
    if all(name in ids for name in classes):
        return tuple(ids[name] for name in classes)
    return tuple(range(1, len(classes) + 1))


def _size(image: WrittenImage, format: str, notes: Counter[str]) -> tuple[int, int] | None:
    """Return the image size that the boxes refer to; None for an image that must be skipped."""
    seen = image_size(image.path)
    if seen is None:
        notes['{} images are missing or cannot be read, and are skipped.'] += 1
        return None
    size = size_for_loading(image.path, image.size)
    if format == 'yolo' and size != seen:
        notes[
            '{} images with EXIF rotation have unrotated annotations, which YOLO cannot represent, and are skipped.'
        ] += 1
        return None
    return size


def _boxes(
    image: WrittenImage,
    source: str,
    label_of: dict[Any, int],
    format: str,
    size: tuple[int, int],
    notes: Counter[str],
) -> Iterator[OutBox]:
    for box in image.boxes:
        label, ignored = label_of.get(box.category), box.iscrowd or box.difficult
        if label is None:
            notes['{} boxes belong to none of the converted classes, and are skipped.'] += 1
        elif not all(map(math.isfinite, box.corners)):
            notes['{} boxes do not consist of four numbers, and are skipped.'] += 1
        elif ignored and format == 'yolo':
            notes['{} crowd regions or difficult objects are skipped: YOLO has no flag for them.'] += 1
        else:
            notes['{} crowd regions are marked difficult: VOC has no other flag.'] += (
                box.iscrowd and format == 'voc'
            )
            notes['{} difficult objects are marked iscrowd: COCO has no other flag.'] += (
                box.difficult and format == 'coco'
            )
            out = OutBox(label, box.corners, tuple(xywh_of(box, source)), ignored, box.area)
            notes['{} boxes extend far beyond their image: Ultralytics rejects such images.'] += (
                format == 'yolo' and not all(0 <= number <= 1 for number in _relative(out, size))
            )
            yield out


def _unique(path: Path, split: str, taken: set[str]) -> str:
    """Return a file name that is unique even without its suffix."""
    candidates = [path.stem, f'{split}_{path.stem}', f'{path.parent.name}_{path.stem}']
    stem = next((stem for stem in candidates if stem not in taken), None)
    number = 1
    while stem is None or stem in taken:
        number += 1
        stem = f'{path.stem}_{number}'
    taken.add(stem)
    return stem + path.suffix


# ------------------------------------------------------------------------------------------------------------- formats


def _write_coco(dataset: OutDataset, folder: Path) -> None:
    categories = [{'id': id_, 'name': name} for id_, name in zip(dataset.ids, dataset.classes, strict=True)]
    for split, listed in dataset.splits.items():
        images: list[dict[str, Any]] = []
        annotations: list[dict[str, Any]] = []
        for position, image in enumerate(listed, start=1):
            image_id = position if image.id is None else image.id
            width, height = image.size
            images.append({'id': image_id, 'file_name': image.name, 'width': width, 'height': height})
            for box in image.boxes:
                area = box.xywh[2] * box.xywh[3] if box.area is None else box.area
                annotations.append(
                    {
                        'id': len(annotations) + 1,
                        'image_id': image_id,
                        'category_id': dataset.ids[box.label],
                        'bbox': list(box.xywh),
                        'area': area,
                        'iscrowd': int(box.ignored),
                    }
                )
        content = {'images': images, 'annotations': annotations, 'categories': categories}
        write_json(content, folder / 'annotations' / f'instances_{split}.json')


def _write_voc(dataset: OutDataset, folder: Path) -> None:
    for name in ('Annotations', 'ImageSets/Main'):
        (folder / name).mkdir(parents=True)
    (folder / 'classes.txt').write_text(''.join(f'{name}\n' for name in dataset.classes), encoding='utf-8')
    for split, listed in dataset.splits.items():
        stems = [Path(image.name).stem for image in listed]
        (folder / 'ImageSets/Main' / f'{split}.txt').write_text(''.join(f'{stem}\n' for stem in stems))
        for image, stem in zip(listed, stems, strict=True):
            tree = ET.ElementTree(_annotation(image, dataset.classes))
            ET.indent(tree)
            tree.write(folder / 'Annotations' / f'{stem}.xml', encoding='utf-8')


def _annotation(image: OutImage, classes: tuple[str, ...]) -> ET.Element:
    root = ET.Element('annotation')
    ET.SubElement(root, 'folder').text = 'JPEGImages'
    ET.SubElement(root, 'filename').text = image.name
    size = ET.SubElement(root, 'size')
    for key, value in zip(('width', 'height', 'depth'), (*image.size, 3), strict=True):
        ET.SubElement(size, key).text = str(value)
    for box in image.boxes:
        element = ET.SubElement(root, 'object')
        ET.SubElement(element, 'name').text = classes[box.label]
        ET.SubElement(element, 'difficult').text = str(int(box.ignored))
        corners = ET.SubElement(element, 'bndbox')
        for key, coordinate in zip(('xmin', 'ymin', 'xmax', 'ymax'), box.corners, strict=True):
            ET.SubElement(corners, key).text = _digits(Decimal(repr(round(coordinate, DECIMALS))) + 1)
    return root


def _write_yolo(dataset: OutDataset, folder: Path) -> None:
    data: dict[str, Any] = {split: f'images/{split}' for split in dataset.splits}
    data['names'] = dict(enumerate(dataset.classes))
    (folder / 'data.yaml').write_text(
        yaml.safe_dump(data, sort_keys=False, allow_unicode=True), encoding='utf-8'
    )
    for split, listed in dataset.splits.items():
        labels = folder / 'labels' / split
        labels.mkdir(parents=True)
        for image in listed:
            text = ''.join(
                ' '.join([str(box.label), *map(_digits, _relative(box, image.size))]) + '\n'
                for box in image.boxes
            )
            (labels / f'{Path(image.name).stem}.txt').write_text(text)


def _relative(box: OutBox, size: tuple[int, int]) -> tuple[Decimal, ...]:
    """Return center, width and height of a box as fractions of the image's width and height."""
    x1, y1, x2, y2 = (Decimal(repr(round(value, DECIMALS))) for value in box.corners)
    width, height = map(Decimal, size)
    numbers = ((x1 + x2) / 2 / width, (y1 + y2) / 2 / height, (x2 - x1) / width, (y2 - y1) / height)
    return tuple(round(number, RELATIVE_DIGITS) for number in numbers)


def _digits(number: Decimal) -> str:
    """Format a number without an exponent or trailing zeros."""
    text = f'{number:f}'
    return text.rstrip('0').rstrip('.') if '.' in text else text


_FORMATS: dict[str, tuple[Callable[[OutDataset, Path], None], str]] = {  # writer, folder of a split's images
    'coco': (_write_coco, '{split}'),
    'voc': (_write_voc, 'JPEGImages'),
    'yolo': (_write_yolo, 'images/{split}'),
}
_PLACE: dict[str, Callable[[Path, Path], Any]] = {
    'copy': shutil.copyfile,
    'symlink': lambda source, path: path.symlink_to(source),
    'hardlink': lambda source, path: os.link(source, path),
}
