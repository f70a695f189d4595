"""Detect the format, splits and layout of a dataset in a folder."""

import json
import mmap
import os
import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from ddetr.datasets.formats.coco import read_coco_split
from ddetr.datasets.formats.headers import images_in
from ddetr.datasets.formats.records import WrittenSplit
from ddetr.datasets.formats.voc import read_voc_split
from ddetr.datasets.formats.yolo import (
    categories_of,
    is_yaml,
    label_file,
    read_data_yaml,
    read_yolo_folder,
    read_yolo_split,
    resolve,
    split_key,
)
from ddetr.utils.errors import InputError

SPLITS = ('train', 'val', 'test')
_ALIASES = {
    'train': 'train',
    'training': 'train',
    'val': 'val',
    'valid': 'val',
    'validation': 'val',
    'dev': 'val',
}
_ALIASES |= {'test': 'test', 'testing': 'test', 'trainval': 'trainval'}
_IMAGE_FOLDERS = ('JPEGImages', 'images', 'Images', 'imgs', 'img', 'data')
_XML_FOLDERS = ('Annotations', 'annotations', 'xmls', 'labels')
_NAME_FILES = ('classes.txt', 'obj.names', 'classes.names', '_darknet.labels')
_SAMPLE = 20  # number of image names that are looked up per annotation file


class FoundSplit(NamedTuple):
    """One split of a dataset in a folder."""

    name: str  # 'train', 'val' or 'test'
    source: Path  # annotation file, list of images or folder
    dataset: dict[str, Any]  # config of the dataset: type, data_root, ann_file, data_prefix, ...
    read: Callable[[], WrittenSplit]


class FoundDataset(NamedTuple):
    """A dataset in a folder."""

    root: Path
    format: str  # 'coco', 'voc' or 'yolo'
    splits: dict[str, FoundSplit]  # by name, in the order train, val, test
    notes: tuple[str, ...] = ()  # messages about skipped files and decisions

    def summary(self) -> str:
        """Describe the dataset in one line."""
        parts = ', '.join(f'{name}: {_below(split.source, self.root)}' for name, split in self.splits.items())
        return f'{self.root} is in the format of {_TITLES[self.format]} ({parts})'


_TITLES = {'coco': 'COCO', 'voc': 'Pascal VOC', 'yolo': 'YOLO'}


def find_dataset(data_root: str | Path, format: str | None = None) -> FoundDataset:
    """Detect the annotation format and the splits of a folder.

    Supports the layouts of COCO, Pascal VOC and Ultralytics and the exports of Roboflow and Label Studio in these
    formats; docs/data_formats.md lists them. A dataset without splits becomes a single split `train`.

    Args:
        data_root: The folder, or a `data.yaml`.
        format: 'coco', 'voc' or 'yolo', to consider only this format.

    Raises:
        InputError: The folder is missing, contains no known annotations, or is ambiguous; the message lists the
            candidates.
    """
    root = Path(data_root)
    if root.is_file() and is_yaml(root):
        noted: list[str] = []
        named = list(_splits_of_yaml(root.parent, root, noted))
        return FoundDataset(root.parent, 'yolo', _unique(named, root.parent, noted), tuple(noted))
    if not root.is_dir():
        raise InputError(
            f'{root} {"is a file, not" if root.exists() else "does not exist: give"} the folder of a dataset.'
        )
    if format not in (None, *_TITLES):
        raise InputError(f'unknown format {format!r}: choose one of {", ".join(_TITLES)}.')
    notes: list[str] = []
    finders = {'coco': _find_coco, 'voc': _find_voc, 'yolo': _find_yolo}
    found = {name: list(find(root, notes)) for name, find in finders.items() if format in (None, name)}
    found = {name: splits for name, splits in found.items() if splits}
    if not found:
        raise InputError(_nothing(root, format))
    if len(found) > 1:
        listed = '; '.join(
            f'{_TITLES[name]} ({", ".join(_below(split.source, root) for split in splits)})'
            for name, splits in found.items()
        )
        raise InputError(
            f'{root} contains annotations in more than one format: {listed}. Specify which one to read.'
        )
    (name, splits), *_ = found.items()
    return FoundDataset(root, name, _unique(splits, root, notes), tuple(notes))


def _unique(splits: list[FoundSplit], root: Path, notes: list[str]) -> dict[str, FoundSplit]:
    """One split per name, in order; `trainval` replaces a missing `train`."""
    by_name: dict[str, list[FoundSplit]] = {}
    for split in splits:
        by_name.setdefault(split.name, []).append(split)
    for name, same in by_name.items():
        if len(same) > 1 and name != 'trainval':
            listed = ', '.join(_below(split.source, root) for split in same)
            raise InputError(
                f'{root} has {len(same)} candidates for the split {name!r}: {listed}. Give the folder of one of them, '
                'or name the files in the config.'
            )
    if 'trainval' in by_name and 'train' not in by_name:
        by_name['train'] = [by_name['trainval'][0]._replace(name='train')]
        notes.append('the list trainval is used for training, since there is no list train.')
    return {name: by_name[name][0] for name in SPLITS if name in by_name}


def _nothing(root: Path, format: str | None) -> str:
    inside = sorted(path.name + '/' * path.is_dir() for path in root.iterdir())
    shown = ', '.join(inside[:8]) + (f' and {len(inside) - 8} more' if len(inside) > 8 else '')
    known = 'COCO (a JSON file), Pascal VOC (XML files) or YOLO (data.yaml or classes.txt, and text files)'
    wanted = f'annotations in the format of {_TITLES[format] if format else known}'
    return f'{root} has no {wanted}; it contains {shown or "nothing"}.'


def _below(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix() if path.is_relative_to(root) else str(path)


def _split_in(text: str) -> str | None:
    """Split named in a string such as 'instances_val2017' or 'valid'; None if there is none or several."""
    words = re.findall(r'[a-z]+', text.lower())
    found = {_ALIASES[word] for word in words if word in _ALIASES}
    return found.pop() if len(found) == 1 else None


def _folders(root: Path) -> list[Path]:
    """Subfolders; `scandir` finds them without a `stat` call per image."""
    with os.scandir(root) as entries:
        return sorted(Path(entry) for entry in entries if entry.is_dir() and not entry.name.startswith('.'))


# ---------------------------------------------------------------------------------------------------------------- COCO


def _find_coco(root: Path, notes: list[str]) -> Iterator[FoundSplit]:
    """JSON files at the top level or one folder below that look like COCO's detection format."""
    below = [root, *_folders(root)]
    files = [path for folder in below for path in sorted(folder.glob('*.json')) if _looks_like_coco(path)]
    named = [
        (path, _split_in(path.stem) or (path.parent != root and _split_in(path.parent.name)))
        for path in files
    ]
    by_split: dict[str, list[Path]] = {}
    for path, split in named:
        by_split.setdefault(split or '', []).append(path)
    if set(by_split) == {''}:  # a single file without the name of a split
        by_split = {'train': by_split['']}
    elif unnamed := by_split.pop('', []):
        listed = ', '.join(_below(path, root) for path in unnamed)
        notes.append(f'skipped, because their names indicate no split: {listed}.')
    for split, paths in by_split.items():
        # the original COCO folder also has captions, keypoints and panoptic annotations of the same images
        detection = [path for path in paths if path.stem.startswith('instances')] or paths
        for path in detection:
            folder = _image_folder(path, root, split)
            yield FoundSplit(
                name=split,
                source=path,
                dataset={
                    'type': 'CocoDataset',
                    'data_root': str(root),
                    'ann_file': _below(path, root),
                    'data_prefix': {'img': _prefix(folder, root)},
                },
                read=partial(read_coco_split, path, folder, split),
            )


def _prefix(folder: Path, root: Path) -> str:
    """Folder for `data_prefix`, relative to the root; '' for the root itself."""
    return '' if folder == root else f'{_below(folder, root)}/'


def _looks_like_coco(path: Path) -> bool:
    """Whether a file contains the three lists of the format; large files are searched without parsing."""
    if path.stat().st_size == 0:
        return False
    text = _map(path)
    if any(text.find(key) < 0 for key in (b'"images"', b'"annotations"', b'"categories"')):
        return False
    return bool(re.search(rb'"bbox"|"annotations"\s*:\s*\[\s*\]', text))


def _map(path: Path) -> mmap.mmap:
    """Memory map of a file, closed with the last reference."""
    with open(path, 'rb') as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)


def _image_names(path: Path) -> list[str]:
    """First image names in a file, without parsing all of it."""
    found = re.finditer(rb'"file_name"\s*:\s*("(?:[^"\\]|\\.)*")', _map(path))
    return [json.loads(match[1]) for match in islice(found, _SAMPLE)]


def _image_folder(ann_file: Path, root: Path, split: str) -> Path:
    """Folder that contains most of the first images; of several, the one whose name matches the split."""
    names = _image_names(ann_file)
    stem = re.sub(r'^.*?_', '', ann_file.stem)  # instances_train2017 -> train2017
    near = [folder for folder in (ann_file.parent, root) for folder in (folder, *_folders(folder))]
    candidates = dict.fromkeys([*near, *(deeper for folder in _folders(root) for deeper in _folders(folder))])

    def rank(folder: Path) -> tuple[int, bool, bool, bool]:
        hits = sum((folder / name).is_file() for name in names)
        own = _split_in(folder.name) == split or (folder != root and _split_in(folder.parent.name) == split)
        return hits, folder.name == stem, own, folder == ann_file.parent

    return max(candidates, key=rank)


# ----------------------------------------------------------------------------------------------------------------- VOC


def _find_voc(root: Path, notes: list[str]) -> Iterator[FoundSplit]:
    """VOC's own layout, here or in `VOCdevkit/VOC*`, or XML files beside or parallel to the images."""
    years = [
        path for folder in (root, root / 'VOCdevkit') if folder.is_dir() for path in folder.glob('VOC[0-9]*')
    ]
    for base in [root, *sorted(years)]:
        xmls = next((base / name for name in _XML_FOLDERS if _has(base / name, '*.xml')), None)
        if xmls and (lists := _voc_lists(base)):
            for split, path in lists.items():
                yield _voc(root, base, split, _images_beside(base), xmls, path)
        elif xmls:
            yield _voc(root, base, 'train', _images_beside(base), xmls)
        elif _has(base, '*.xml'):
            yield _voc(root, base, 'train', _images_beside(base), base)
    for folder in _folders(root):
        part = _split_in(folder.name)
        inside = next((folder / name for name in ('', *_XML_FOLDERS) if _has(folder / name, '*.xml')), None)
        if part and inside:  # Roboflow: train/*.xml beside *.jpg
            yield _voc(root, folder, part, _images_beside(folder), inside)
    for name in _XML_FOLDERS:
        for folder in _folders(root / name) if (root / name).is_dir() else ():
            if (part := _split_in(folder.name)) and _has(folder, '*.xml'):
                images = [root / images / folder.name for images in _IMAGE_FOLDERS]
                yield _voc(root, root, part, next((path for path in images if path.is_dir()), folder), folder)


def _voc_lists(base: Path) -> dict[str, Path]:
    """Lists of the splits in `ImageSets/Main`, without lists of one class such as cat_train.txt."""
    folders = [base / 'ImageSets' / 'Main', base / 'ImageSets']
    folder = next((folder for folder in folders if _has(folder, '*.txt')), None)
    files = sorted(folder.glob('*.txt')) if folder else []
    return {_ALIASES[path.stem.lower()]: path for path in files if path.stem.lower() in _ALIASES}


def _images_beside(base: Path) -> Path:
    return next((base / name for name in _IMAGE_FOLDERS if (base / name).is_dir()), base)


def _has(folder: Path, pattern: str) -> bool:
    return folder.is_dir() and next(folder.glob(pattern), None) is not None


def _voc(
    root: Path, base: Path, split: str, images: Path, xmls: Path, listed: Path | None = None
) -> FoundSplit:
    dataset: dict[str, Any] = {'type': 'VOCDataset', 'data_root': str(root)}
    if listed:
        dataset['ann_file'] = _below(listed, root)
    dataset |= {'data_prefix': {'sub_data_root': _prefix(base, root)}}
    dataset |= {'img_subdir': _below(images, base), 'ann_subdir': _below(xmls, base)}
    return FoundSplit(
        split, listed or xmls, dataset, partial(read_voc_split, xmls, images, split, listed, root)
    )


# ---------------------------------------------------------------------------------------------------------------- YOLO


def _find_yolo(root: Path, notes: list[str]) -> Iterator[FoundSplit]:
    """A `data.yaml`, or a file with class names and folders of images and labels."""
    files = [
        path for suffix in ('yaml', 'yml') for path in sorted(root.glob(f'*.{suffix}')) if _is_data_yaml(path)
    ]
    if files:
        for path in files:
            yield from _splits_of_yaml(root, path, notes)
        return
    folders = list(_yolo_folders(root))
    near = dict.fromkeys(
        [root, root / 'labels', *(place for _, folder in folders for place in _near(folder))]
    )
    names = next((path for place in near for name in _NAME_FILES if (path := place / name).is_file()), None)
    if folders and names is None:
        listed = ', '.join(_below(folder, root) for _, folder in folders)
        raise InputError(
            f'{root} has YOLO labels ({listed}) but no class names: add data.yaml, or classes.txt '
            'with one name per line.'
        )
    for split, folder in folders:
        assert names is not None
        read = partial(read_yolo_folder, folder, names, split)
        prefix = {'img': _prefix(folder, root)}
        dataset = {
            'type': 'YOLODataset',
            'data_root': str(root),
            'ann_file': names.name,
            'data_prefix': prefix,
        }
        yield FoundSplit(split, folder, dataset, read)


def _is_data_yaml(path: Path) -> bool:
    try:
        data = read_data_yaml(path)
    except InputError:
        return False
    return ('names' in data or 'nc' in data) and any(split_key(data, split) for split in SPLITS)


def _splits_of_yaml(root: Path, path: Path, notes: list[str]) -> Iterator[FoundSplit]:
    data = read_data_yaml(path)
    categories_of(data)
    for split in SPLITS:
        if not (key := split_key(data, split)):
            continue
        entries = data[key] if isinstance(data[key], list) else [data[key]]
        if absent := [entry for entry in entries if not resolve(path, data, str(entry)).exists()]:
            notes.append(
                f'{path.name} names {absent[0]!r} for {key}, which does not exist; {split} is skipped.'
            )
            continue
        dataset = {'type': 'YOLODataset', 'data_root': str(root), 'ann_file': path.name, 'split': split}
        yield FoundSplit(split, path, dataset, partial(read_yolo_split, path, split))


def _yolo_folders(root: Path) -> Iterator[tuple[str, Path]]:
    """Folders of images with text files where YOLO expects them, with their splits."""
    both = [(folder.name, folder / 'images', folder / 'labels') for folder in _folders(root)]
    if (images := root / 'images').is_dir():
        both += [(folder.name, folder, root / 'labels' / folder.name) for folder in _folders(images)]
    found = [
        (split, images)
        for name, images, labels in both
        if (split := _split_in(name)) and images.is_dir() and _has(labels, '*.txt')
    ]
    if not found and images.is_dir() and _has(root / 'labels', '*.txt'):
        found = [('train', images)]
    if not found:  # text files beside the images
        beside = [
            (name, folder) for name, folder in [('train', root), *((f.name, f) for f in _folders(root))]
        ]
        found = [
            (split, folder)
            for name, folder in beside
            if (split := _split_in(name)) and _labels_beside(folder)
        ]
    yield from found


def _near(images: Path) -> list[Path]:
    """Folders where annotation tools write the class names: beside the images, their folder or the text files."""
    return [images, images.parent, label_file(images / 'any.jpg').parent]


def _labels_beside(folder: Path) -> bool:
    return any(os.path.exists(image.with_suffix('.txt')) for image in images_in(folder)[:_SAMPLE])
