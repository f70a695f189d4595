"""Config options that apply a config to the dataset in a folder."""

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mmengine.logging import print_log

from ddetr.datasets.coco_format import listing
from ddetr.datasets.formats.find import FoundDataset, FoundSplit, find_dataset
from ddetr.datasets.formats.records import WrittenSplit
from ddetr.registry import MODELS
from ddetr.utils.errors import InputError

# Keys of a dataset config that do not depend on the data or its location.
KEPT = frozenset(
    ('pipeline', 'filter_cfg', 'test_mode', 'cache_mode', 'cache_limit_gib', 'serialize_data', 'max_refetch')
)
ROBOFLOW = '_annotations.coco.json'


def data_options(cfg: Mapping[str, Any], data_root: str | Path, format: str | None = None) -> dict[str, Any]:
    """Return config options to train, validate and test on the dataset in a folder.

    They set the datasets of all three loaders, inside any wrappers, with the same class names in the same order,
    remove annotation files from the evaluators, and set every `num_classes` of the model. Classes named by the
    config's `metainfo` are kept, in their order, if the data has all of them. A summary of the dataset is logged. If
    one of the splits `val` and `test` is missing, the other is used for both.

    Args:
        cfg: The config.
        data_root: Folder of the dataset; see `find_dataset`.
        format: 'coco', 'voc' or 'yolo', if the folder has several.

    Returns:
        Values by dotted key, for `load_config` or `Config.merge_from_dict`.

    Raises:
        InputError: See `find_dataset`; also if there is no training split, no other split, or no class.
    """
    found = find_dataset(data_root, format)
    chosen, notes = _choose(found)
    written = {name: split.read() for name, split in found.splits.items()}
    counts = ', '.join(f'{len(split.images)} images in {name}' for name, split in written.items())
    classes, more = class_names(written)
    classes = _classes_of_config(cfg, classes) or classes
    if not classes:
        raise InputError(f'{found.summary()}, but has no class: no object has a name.')
    for note in (
        f'{found.summary()}; {counts}; {len(classes)} classes: {listing(classes)}',
        *found.notes,
        *notes,
        *more,
    ):
        print_log(note, 'current', logging.INFO)
    options: dict[str, Any] = {}
    for loader, split in chosen.items():
        if cfg.get(f'{loader}_dataloader'):
            path, dataset = _innermost(f'{loader}_dataloader.dataset', cfg[f'{loader}_dataloader']['dataset'])
            kept = {key: value for key, value in dataset.items() if key in KEPT}
            options[path] = {**kept, **split.dataset, 'metainfo': {'classes': classes}, '_delete_': True}
        options |= _without_files(f'{loader}_evaluator', cfg.get(f'{loader}_evaluator'))
    return options | {path: len(classes) for path in class_number_keys(cfg['model'])}


def class_names(splits: Mapping[str, WrittenSplit]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return a dataset's class names in the order of their labels, and notes about skipped names.

    The order is that of the training split's ids, followed by names that only other splits have. Names without ids are
    in the order of `classes.txt`, or alphabetical. Roboflow's COCO files have an unused category 0 for the whole
    project, which is skipped.
    """
    listed = [[category.name for category in split.ordered_categories()] for split in splits.values()]
    with_ids = any(category.id is not None for split in splits.values() for category in split.categories)
    names = list(dict.fromkeys(name for in_split in listed for name in in_split))
    if not with_ids and all(in_split == sorted(in_split) for in_split in listed):
        names.sort()  # classes missing from the training split are sorted in as well
    placeholder = {
        c.name
        for split in splits.values()
        for c in split.categories
        if split.source.name == ROBOFLOW and c.id == 0 and len(split.categories) > 1
    }
    used = {
        c.name
        for split in splits.values()
        for c in split.categories
        if c.name in placeholder
        and any(box.category == c.id for image in split.images for box in image.boxes)
    }
    left_out = [name for name in names if name in placeholder - used]
    kept = [name for name in names if name not in left_out]
    notes = [
        f'category {name!r} with id 0 is skipped: Roboflow adds it, and no box uses it.' for name in left_out
    ]
    return tuple(kept), tuple(notes)


def _classes_of_config(cfg: Mapping[str, Any], known: Sequence[str]) -> tuple[str, ...]:
    """Return the training classes named in the config if the data has all of them, otherwise none."""
    loader = cfg.get('train_dataloader') or {'dataset': {}}
    _, dataset = _innermost('', loader['dataset'])
    named = tuple((dataset.get('metainfo') or {}).get('classes') or ())
    return named if set(named) <= set(known) else ()


def _choose(found: FoundDataset) -> tuple[dict[str, FoundSplit], list[str]]:
    """Return the split for each loader, and notes about replaced ones."""
    splits, notes = dict(found.splits), []
    if 'train' not in splits:
        raise InputError(f'{found.summary()}, but has no training split.')
    if len(splits) == 1:
        raise InputError(
            f'{found.summary()}, but has no validation split: hold out some images with "tools/data/convert.py '
            f'{found.root} --to {found.format} --out DIR --val-fraction 0.2".'
        )
    for absent, instead in (('val', 'test'), ('test', 'val')):
        if absent not in splits:
            splits[absent] = splits[instead]
            notes.append(f'There is no split {absent!r}: {instead!r} takes its place.')
    return splits, notes


def _innermost(path: str, dataset: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """Unwrap a loader's dataset and return its key and config; concatenated datasets are replaced by one."""
    while 'dataset' in dataset:
        path, dataset = f'{path}.dataset', dataset['dataset']
    if 'datasets' in dataset:
        return path, _innermost('', dataset['datasets'][0])[1]
    return path, dataset


def _without_files(path: str, evaluator: Any) -> dict[str, None]:
    """Options that remove annotation files from an evaluator: the ground truth comes with the samples."""
    if isinstance(evaluator, Mapping):
        return {f'{path}.ann_file': None} if evaluator.get('ann_file') else {}
    several = evaluator if isinstance(evaluator, Sequence) and not isinstance(evaluator, str) else ()
    return {
        key: value
        for i, one in enumerate(several)
        for key, value in _without_files(f'{path}.{i}', one).items()
    }


def class_number_keys(model: Mapping[str, Any]) -> list[str]:
    """Return the dotted keys of the number of classes in a config's model, such as `model.bbox_head.num_classes`.

    Region proposal heads, which have one class, are excluded. If the config sets no such key, return the keys that
    its components accept.
    """
    given = [
        (f'{path}.num_classes', part['num_classes'])
        for path, part in _parts('model', model)
        if 'num_classes' in part
    ]
    several = [path for path, number in given if number != 1]
    return (
        several
        or [path for path, _ in given]
        or [f'{path}.num_classes' for path, part in _parts('model', model) if _takes_class_number(part)]
    )


def _parts(path: str, value: Any) -> Iterator[tuple[str, Mapping[str, Any]]]:
    if isinstance(value, Mapping):
        yield path, value
    inner = (
        value.items()
        if isinstance(value, Mapping)
        else enumerate(value)
        if isinstance(value, list | tuple)
        else ()
    )
    for key, part in inner:
        yield from _parts(f'{path}.{key}', part)


def _takes_class_number(part: Mapping[str, Any]) -> bool:
    """Whether a component's constructor has a parameter `num_classes` whose default is not 1."""
    kind = part.get('type')
    kind = MODELS.get(kind) if isinstance(kind, str) else kind
    parameter = inspect.signature(kind).parameters.get('num_classes') if kind is not None else None
    return parameter is not None and parameter.default != 1
