"""Read COCO annotation files, with specific error messages.

The dataset and the metric share this module, so a malformed file raises the same error in both, before training.
"""

import json
import math
from collections.abc import Collection, Sequence

from mmengine.fileio import get_text

from ddetr.utils.errors import InputError


def read_coco(path: str, need_annotations: bool = True, backend_args: dict | None = None) -> dict:
    """Read and check an annotation file.

    Every image needs `id`, `file_name`, `width` and `height`; every category `id` and `name`; every annotation an
    existing `image_id` and `category_id` and a `bbox` of four finite numbers (x, y, w, h in pixels). A missing
    `iscrowd` is set to 0, a missing `area` to the area of the box. Ids must be unique; annotation ids may be missing.

    Args:
        path: File, or a URI supported by mmengine's file backends.
        need_annotations: Require the list `annotations`. COCO's test-dev file, for example, has none.
        backend_args: Arguments of mmengine's file backend.

    Raises:
        InputError: The file is missing or malformed; the message names the file, the key and the index.
    """
    try:
        coco = json.loads(get_text(path, backend_args=backend_args))
    except FileNotFoundError:
        message = f'annotation file {path} does not exist: check data_root and ann_file in the config'
        raise InputError(message) from None
    except IsADirectoryError:
        message = f'annotation file {path} is a folder: name the JSON file in it with ann_file in the config'
        raise InputError(message) from None
    except ValueError as error:  # JSONDecodeError, UnicodeDecodeError
        raise InputError(f'annotation file {path} is not valid JSON (truncated?): {error}') from None
    if not isinstance(coco, dict):
        raise InputError(
            f"annotation file {path} holds a {type(coco).__name__}, not the dict of COCO's format"
        )
    if not need_annotations:
        coco.setdefault('annotations', [])
    for key, needed in (
        ('images', ('id', 'file_name', 'width', 'height')),
        ('categories', ('id', 'name')),
        ('annotations', ('image_id', 'category_id', 'bbox')),
    ):
        _check_records(coco, key, needed, path)
    _check_unique([category['name'] for category in coco['categories']], 'name', 'categories', path)
    for index, image in enumerate(coco['images']):
        for key in ('width', 'height'):
            if not (_is_finite_number(image[key]) and image[key] > 0):
                raise InputError(
                    f'annotation file {path}: images[{index}] (id {image["id"]}) has {key} {image[key]!r}, '
                    'not a positive number of pixels'
                )
    _check_annotations(coco, path)
    return coco


def _check_records(coco: dict, key: str, needed: Sequence[str], path: str) -> None:
    """Check that `key` is a list of dicts with all `needed` keys and unique ids."""
    if not isinstance(coco.get(key), list):
        raise InputError(f"annotation file {path} has no list {key!r}: it is not in COCO's detection format")
    for index, record in enumerate(coco[key]):
        absent = [name for name in needed if not isinstance(record, dict) or name not in record]
        if absent:
            raise InputError(f'annotation file {path}: {key}[{index}] has no {absent[0]!r}')
    _check_unique([record['id'] for record in coco[key] if 'id' in record], 'id', key, path)


def _check_unique(values: list, field: str, key: str, path: str) -> None:
    seen = set()
    for value in values:
        if value in seen:
            raise InputError(f'annotation file {path}: {field} {value!r} occurs twice in {key!r}')
        seen.add(value)


def _check_annotations(coco: dict, path: str) -> None:
    """Check references and boxes; set missing `iscrowd` and `area`."""
    image_ids = {image['id'] for image in coco['images']}
    category_ids = {category['id'] for category in coco['categories']}
    for index, annotation in enumerate(coco['annotations']):
        name = f'annotation file {path}: annotations[{index}] (id {annotation.get("id")})'
        for key, ids, owner in (
            ('image_id', image_ids, 'images'),
            ('category_id', category_ids, 'categories'),
        ):
            if annotation[key] not in ids:
                raise InputError(f'{name} has {key} {annotation[key]!r}, which no entry of "{owner}" has')
        box = annotation['bbox']
        if not (isinstance(box, list) and len(box) == 4 and all(_is_finite_number(v) for v in box)):
            raise InputError(f'{name} has bbox {box!r}, not four finite numbers [x, y, width, height]')
        annotation.setdefault('iscrowd', 0)
        annotation.setdefault('area', box[2] * box[3])


def _is_finite_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def category_ids_of(coco: dict, classes: Sequence[str], path: str) -> list[int]:
    """Return category ids in the order of `classes`; InputError if the file lacks a class."""
    id_of = {category['name']: category['id'] for category in coco['categories']}
    missing = [name for name in classes if name not in id_of]
    if missing:
        raise InputError(
            f'annotation file {path} has no category named {listing(missing)}; it has {listing(id_of)}: '
            "name the file's own categories in metainfo=dict(classes=(...)), or omit metainfo to use all"
        )
    return [id_of[name] for name in classes]


def listing(names: Collection[str], limit: int = 10) -> str:
    """Quote the first names for an error message."""
    shown = ', '.join(repr(name) for name in list(names)[:limit])
    return shown if len(names) <= limit else f'{shown} and {len(names) - limit} more'
