"""YOLO format: one text file per image with normalised boxes, and a `data.yaml` with the class names."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from ddetr.datasets.formats.headers import image_size, images_in, is_image
from ddetr.datasets.formats.records import DECIMALS, Category, WrittenBox, WrittenImage, WrittenSplit
from ddetr.utils.errors import InputError

SPLIT_KEYS = {'train': ('train',), 'val': ('val', 'valid', 'validation'), 'test': ('test',)}


def read_yolo_split(data_yaml: Path, split: str) -> WrittenSplit:
    """Read one split of a dataset in Ultralytics' format without rejecting faulty records.

    Boxes are converted to pixels with the size in the image header. Polygons become their bounding boxes. Images
    without a text file, or with an empty one, have no boxes.

    Args:
        data_yaml: File with `names` (list or dict) and, for each split, one or several folders or list files, relative
            to its key `path` or, if nothing is found there, to the file itself.
        split: 'train', 'val' or 'test'.

    Returns:
        The split. Unreadable lines are described in `unreadable`. Boxes of images with an unreadable header have NaN
        corners.

    Raises:
        InputError: The file, split, folder or image list does not exist, or the file is not valid YAML.
    """
    data = read_data_yaml(data_yaml)
    key = split_key(data, split)
    if key is None:
        raise InputError(f'{data_yaml} has no split {split!r}: it has the keys {", ".join(map(repr, data))}.')
    images: list[Path] = []
    for entry in data[key] if isinstance(data[key], list) else [data[key]]:
        images += _images(resolve(Path(data_yaml), data, str(entry)), f'{data_yaml}: {key}')
    return read_yolo_images(images, categories_of(data), split, Path(data_yaml))


def split_key(data: dict, split: str) -> str | None:
    """Return the key of a split in a `data.yaml`; 'val', 'valid' and 'validation' are equivalent."""
    return next((key for key in SPLIT_KEYS.get(split, (split,)) if data.get(key)), None)


def read_yolo_folder(images: Path, names: Path, split: str) -> WrittenSplit:
    """Read the text files of all images in a folder, with the classes in a `data.yaml` or a text file of names.

    Raises:
        InputError: The folder or file does not exist.
    """
    if not images.is_dir():
        raise InputError(f'folder of images {images} does not exist.')
    categories = categories_of(read_data_yaml(names)) if is_yaml(names) else read_names(names)
    return read_yolo_images(images_in(images, recursive=True), categories, split, names)


def is_yaml(path: Path) -> bool:
    """Whether a path has a YAML suffix."""
    return path.suffix.lower() in ('.yaml', '.yml')


def read_yolo_images(
    images: list[Path], categories: tuple[Category, ...], split: str, source: Path
) -> WrittenSplit:
    """Read the text files of these images; see `read_yolo_split`."""
    unreadable: list[str] = []
    same = Counter(path.stem for path in images)
    read = tuple(_image(path, unreadable, source.parent, same[path.stem] == 1) for path in images)
    return WrittenSplit(split, 'yolo', source, categories, read, tuple(unreadable))


def read_data_yaml(path: Path) -> dict:
    """Read a `data.yaml`; InputError if it does not exist or is not valid."""
    path = Path(path)
    if not path.is_file():
        raise InputError(f'{path} {"is a folder" if path.is_dir() else "does not exist"}.')
    try:
        data = yaml.safe_load(path.read_text(encoding='utf-8-sig'))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f'{path} is not valid YAML: {str(error).splitlines()[0]}.') from None
    if not isinstance(data, dict):
        raise InputError(f'{path} holds a {type(data).__name__}, not a dict with names and splits.')
    return data


def categories_of(data: dict) -> tuple[Category, ...]:
    """Return the classes in a `data.yaml`: `names` as a list or dict, or `nc` without names."""
    names: Any = data.get('names')
    try:
        if isinstance(names, dict):
            return tuple(Category(int(number), str(names[number])) for number in sorted(names, key=int))
        if isinstance(names, list):
            return tuple(Category(number, str(name)) for number, name in enumerate(names))
        return tuple(Category(number, str(number)) for number in range(int(data.get('nc') or 0)))
    except (TypeError, ValueError):
        raise InputError(
            f'names: {names!r} is neither a list of names nor a dict from numbers to names.'
        ) from None


def read_names(path: Path) -> tuple[Category, ...]:
    """Read the classes from a text file with one name per line; trailing blank lines are ignored."""
    if not path.is_file():
        raise InputError(
            f'file of class names {path} {"is a folder" if path.is_dir() else "does not exist"}.'
        )
    lines = path.read_text(encoding='utf-8-sig').rstrip().splitlines()
    return tuple(Category(number, line.strip()) for number, line in enumerate(lines))


def resolve(data_yaml: Path, data: dict, entry: str) -> Path:
    """Resolve a path in a `data.yaml`.

    Exported files often contain paths from another machine, or `../train/images` for a folder beside the file. If the
    path as written does not exist, use its longest suffix that exists beside the file.
    """
    folder = data_yaml.parent
    path = Path(entry)
    root = Path(str(data.get('path') or ''))
    for candidate in (folder / root / path, root / path, folder / path):
        if candidate.exists():
            return candidate
    parts = [part for part in (root / path).parts if part not in ('..', path.anchor)]
    ends = (folder.joinpath(*parts[start:]) for start in range(len(parts)))
    return next((end for end in ends if end.exists()), folder / root / path)


def _images(path: Path, where: str) -> list[Path]:
    """Return the images in a folder (recursively) or a list file."""
    if path.is_dir():
        return images_in(path, recursive=True)
    if not path.is_file():
        raise InputError(f'{where} names {path}, which does not exist.')
    if is_image(path):
        return [path]
    lines = (line.strip() for line in path.read_text(encoding='utf-8-sig').splitlines())
    return [path.parent / line for line in lines if line]


def label_file(image: Path) -> Path:
    """Return the text file of an image: in `labels/` instead of the last `images/` in its path, or beside it."""
    parts = list(image.parts[:-1])
    if 'images' in parts:
        last = len(parts) - 1 - parts[::-1].index('images')
        parts[last] = 'labels'
    return Path(*parts, f'{image.stem}.txt')


def _image(path: Path, unreadable: list[str], root: Path, unique: bool) -> WrittenImage:
    labels = label_file(path)
    where = labels.relative_to(root).as_posix() if labels.is_relative_to(root) else str(labels)
    try:
        text = labels.read_text(encoding='utf-8-sig') if labels.is_file() else ''
    except (OSError, UnicodeDecodeError) as error:
        unreadable.append(f'{where} cannot be read: {error}.')
        text = ''
    size = image_size(path)
    boxes = tuple(_boxes(text, size or (math.nan, math.nan), where, unreadable))
    name = path.stem if unique else str(path.with_suffix(''))
    return WrittenImage(path.name, path, None, boxes, where, id=name, header=size)


def _boxes(text: str, size: tuple[float, float], where: str, unreadable: list[str]) -> Iterator[WrittenBox]:
    for number, line in enumerate(text.splitlines(), start=1):
        columns = line.split()
        if not columns:
            continue
        try:
            values = tuple(float(column) for column in columns)
            category = int(values[0]) if values[0] == int(values[0]) else None
        except (ValueError, OverflowError):
            values, category = (), None
        if category is None or not (len(values) == 5 or (len(values) >= 7 and len(values) % 2)):
            unreadable.append(
                f'{where}: line {number} is neither "class x y width height" nor "class" and a polygon: {line[:40]!r}.'
            )
            continue
        yield WrittenBox(category, _corners(values[1:], *size), values[1:], f'line {number}')


def _corners(values: tuple[float, ...], width: float, height: float) -> tuple[float, float, float, float]:
    """Convert a normalised box (center x, center y, width, height) or polygon to box corners in pixels."""
    if len(values) == 4:
        x, y, w, h = values
        corners = (x - w / 2, y - h / 2, x + w / 2, y + h / 2)
    else:
        corners = (min(values[::2]), min(values[1::2]), max(values[::2]), max(values[1::2]))
    x1, y1, x2, y2 = (round(v * side, DECIMALS) for v, side in zip(corners, (width, height) * 2, strict=True))
    return x1, y1, x2, y2
