"""Reader of COCO's detection format that does not reject faulty records."""

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

from ddetr.datasets.formats.records import Category, WrittenBox, WrittenImage, WrittenSplit
from ddetr.utils.errors import InputError


def read_coco_split(ann_file: Path, image_dir: Path, name: str) -> WrittenSplit:
    """Read an annotation file without rejecting faulty records.

    Args:
        ann_file: JSON in COCO's format.
        image_dir: Folder to which image names are relative.
        name: Name of the split.

    Returns:
        The split. Unusable records, or a file that is not JSON, are described in `unreadable`.

    Raises:
        InputError: The file does not exist.
    """
    unreadable: list[str] = []
    coco = _read_json(Path(ann_file), unreadable)
    return split_of(coco, Path(ann_file), Path(image_dir), name, unreadable)


def split_of(coco: dict, ann_file: Path, image_dir: Path, name: str, unreadable: list[str]) -> WrittenSplit:
    """Convert the content of an annotation file to records; unusable parts are described in `unreadable`."""
    categories = tuple(
        Category(record['id'], str(record['name']))
        for _, record in _records(coco, 'categories', ('id', 'name'), ann_file, unreadable)
    )
    boxes: dict[str, list[WrittenBox]] = defaultdict(list)
    for index, record in _records(coco, 'annotations', ('image_id', 'bbox'), ann_file, unreadable):
        boxes[_key(record['image_id'])].append(_box(index, record))
    images, owners = [], set()
    for index, record in _records(coco, 'images', ('id', 'file_name'), ann_file, unreadable):
        owner = _key(record['id'])
        images.append(
            WrittenImage(
                file_name=str(record['file_name']),
                path=image_dir / str(record['file_name']),
                size=_size(record),
                boxes=() if owner in owners else tuple(boxes[owner]),
                where=f'{ann_file.name}: images[{index}] (id {record["id"]!r})',
                id=record['id'],
            )
        )
        owners.add(owner)
    lost = tuple(
        f'{ann_file.name}: {box.where} has image_id {owner}, which no entry of "images" has.'
        for owner, of_image in boxes.items()
        if owner not in owners
        for box in of_image
    )
    return WrittenSplit(name, 'coco', ann_file, categories, tuple(images), tuple(unreadable), lost)


def _read_json(path: Path, unreadable: list[str]) -> dict:
    """Return the dict in the file; if it is invalid, an empty one with a message in `unreadable`."""
    if not path.is_file():
        raise InputError(f'annotation file {path} {"is a folder" if path.is_dir() else "does not exist"}.')
    try:
        coco = json.loads(path.read_text(encoding='utf-8-sig'))
    except (ValueError, RecursionError) as error:
        unreadable.append(f'{path.name} is not valid JSON (truncated?): {error}.')
        return {}
    if not isinstance(coco, dict):
        unreadable.append(f"{path.name} holds a {type(coco).__name__}, not the dict of COCO's format.")
        return {}
    return coco


def _records(
    coco: dict, key: str, needed: tuple[str, ...], path: Path, unreadable: list[str]
) -> list[tuple[int, dict]]:
    """Return indices and dicts in the list `key` that have all needed keys; report others in `unreadable`."""
    listed = coco.get(key)
    if not isinstance(listed, list):
        if coco:
            unreadable.append(f'{path.name} has no list "{key}".')
        return []
    good = []
    for index, record in enumerate(listed):
        absent = [name for name in needed if not isinstance(record, dict) or name not in record]
        if absent:
            unreadable.append(f'{path.name}: {key}[{index}] has no "{absent[0]}".')
        else:
            good.append((index, record))
    return good


def _box(index: int, record: dict) -> WrittenBox:
    written = record['bbox'] if isinstance(record['bbox'], list) else [record['bbox']]
    numbers = [_number(value) for value in written]
    x, y, w, h = numbers if len(numbers) == 4 else [math.nan] * 4
    area = record.get('area')
    return WrittenBox(
        category=record.get('category_id'),
        corners=(x, y, x + w, y + h),
        written=tuple(written),
        where=f'annotations[{index}] (id {record.get("id")!r})',
        id=record.get('id'),
        iscrowd=record.get('iscrowd') in (1, True, '1'),
        area=None if area is None else _number(area),
    )


def _number(value: Any) -> float:
    """A JSON number; NaN for anything else, including text, which training rejects as well."""
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def _size(record: dict) -> tuple[int, int] | None:
    size = tuple(_number(record.get(key)) for key in ('width', 'height'))
    return (int(size[0]), int(size[1])) if all(math.isfinite(value) for value in size) else None


def _key(value: Any) -> str:
    """Key for matching ids of any JSON type; 7 and "7" are different ids."""
    return json.dumps(value, sort_keys=True)
