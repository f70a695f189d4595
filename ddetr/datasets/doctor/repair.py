"""Automatic repair of faults that need no human decision.

Every step takes and returns all splits, and counts its changes in `Repair.done`.
"""

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from ddetr.datasets.formats import write_dataset
from ddetr.datasets.formats.records import Category, WrittenBox, WrittenImage, WrittenSplit
from ddetr.utils.errors import InputError

from .box_checks import CENTRED, CORNERS, OUTSIDE_PX, SIZED, TINY_PX, duplicates, misread
from .category_checks import variants
from .evidence import Boxes, Evidence, Limits, gather, number
from .file_checks import SUFFIXES, good_size, like_named
from .image_facts import ImageFacts, read_all_facts
from .near_copies import equal_files, near_copies
from .report import Report
from .split_checks import augmented_copies

OWN_READING = {'coco': SIZED, 'voc': CORNERS, 'yolo': CENTRED}
JPEG_QUALITY = 95
COMMON_SUFFIX = {'JPEG': '.jpg', 'MPO': '.jpg', 'TIFF': '.tif'}  # for formats with several suffixes
SAME_SHAPE = 0.01  # relative difference of aspect ratios


def fix(report: Report, folder: str | Path) -> list[str]:
    """Write a cleaned copy of a report's dataset in the same format; return messages about the changes.

    Args:
        report: Report of `examine` or `check_data`. Images that were not opened are opened now.
        folder: Folder of the copy; must not exist or be empty.

    Raises:
        InputError: The folder is not empty, or nothing of the dataset is left.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise InputError(f'{folder} is not empty: choose another folder for the cleaned copy.')
    splits = report.evidence.splits
    with tempfile.TemporaryDirectory(prefix='ddetr_doctor_') as scratch:
        work = Repair(dict(report.evidence.facts), Path(scratch))
        cleaned = repair(splits, work)
        if not any(image.boxes for split in cleaned for image in split.images):
            raise InputError('no image with boxes is left after cleaning: fix the faults by hand.')
        classes = tuple(category.name for category in cleaned[0].categories)
        notes = write_dataset(_by_name(cleaned), classes, cleaned[0].format, folder)
    lines = [f'{n} {what}' for what, n in work.done.items()] or ['no changes needed']
    left = sum(len(split.images) for split in cleaned)
    return [f'Cleaned copy in {folder}: {left} images.', *(f'  {line}' for line in (*lines, *notes))]


def _by_name(splits: list[WrittenSplit]) -> dict[str, WrittenSplit]:
    named: dict[str, WrittenSplit] = {}
    for split in splits:
        named[f'{split.name}_{len(named) + 1}' if split.name in named else split.name] = split
    return named


@dataclass
class Repair:
    """Facts about the images, and counts of the changes."""

    facts: dict[Path, ImageFacts]
    scratch: Path  # folder for rewritten images
    done: Counter[str] = field(default_factory=Counter)


def repair(splits: Sequence[WrittenSplit], work: Repair) -> list[WrittenSplit]:
    """Clean all splits; `work.done` counts the changes by kind."""
    for split in splits:
        work.done['unreadable annotations dropped'] += len(split.unreadable)
        work.done['annotations of unlisted images dropped'] += len(split.lost)
    steps: tuple[Callable[[list[WrittenSplit], Repair], list[WrittenSplit]], ...] = (
        _find_files,
        _drop_damaged,
        _set_sizes,
        _merge_entries,
        _drop_copies,
        _mend_boxes,
        _mend_categories,
        _rewrite_images,
        _number,
    )
    cleaned = [split._replace(unreadable=(), lost=()) for split in splits]
    for step in steps:
        cleaned = step(cleaned, work)
    work.done += Counter()  # drops zeros
    return cleaned


def _each_image(
    splits: Sequence[WrittenSplit], change: Callable[[WrittenSplit, WrittenImage], WrittenImage | None]
) -> list[WrittenSplit]:
    """Replace every image by the result of `change`; None drops it."""
    result = []
    for split in splits:
        changed = (change(split, image) for image in split.images)
        result.append(split._replace(images=tuple(image for image in changed if image is not None)))
    return result


def _find_files(splits: list[WrittenSplit], work: Repair) -> list[WrittenSplit]:
    evidence = gather(splits, {}, Limits())

    def change(split: WrittenSplit, image: WrittenImage) -> WrittenImage | None:
        if evidence.exists(image.path):
            return image
        path = like_named(evidence, image.path)
        work.done['image names corrected' if path else 'entries of missing images dropped'] += 1
        return image._replace(path=path) if path else None

    found = _each_image(splits, change)
    paths = {image.path for split in found for image in split.images}
    work.facts |= read_all_facts(sorted(paths - work.facts.keys()))
    return found


def _drop_damaged(splits: list[WrittenSplit], work: Repair) -> list[WrittenSplit]:
    def change(split: WrittenSplit, image: WrittenImage) -> WrittenImage | None:
        problem = work.facts[image.path].problem
        work.done[f'{problem} images dropped'] += bool(problem)
        return None if problem else image

    return _each_image(splits, change)


def _set_sizes(splits: list[WrittenSplit], work: Repair) -> list[WrittenSplit]:
    def change(split: WrittenSplit, image: WrittenImage) -> WrittenImage | None:
        facts = work.facts[image.path]
        if image.size is not None and image.size in (facts.size, facts.upright_size):
            return image
        real = facts.upright_size
        assert real is not None  # damaged images were dropped before
        resized = image._replace(size=real)
        if split.format == 'yolo':
            return resized
        work.done['image sizes corrected'] += 1
        if not good_size(image.size) or image.size is None:
            return resized
        (w, h), (new_w, new_h) = image.size, real
        if abs(w / h - new_w / new_h) < SAME_SHAPE * w / h:
            work.done['boxes scaled to the size of their image'] += len(image.boxes)
            scale = new_w / w, new_h / h
            return resized._replace(boxes=tuple(_scaled(box, scale) for box in image.boxes))
        corners = np.array([box.corners for box in image.boxes]).reshape(-1, 4)
        if (corners[:, 2:] <= np.array(real) + OUTSIDE_PX).all():
            return resized
        work.done['images whose boxes fit another size dropped'] += 1
        return None

    return _each_image(splits, change)


def _scaled(box: WrittenBox, scale: tuple[float, float]) -> WrittenBox:
    factors = np.tile(scale, 2)
    corners = tuple((np.array(box.corners) * factors).tolist())
    written = tuple((np.array([number(v) for v in box.written[:4]]) * factors).tolist())
    area = None if box.area is None else box.area * scale[0] * scale[1]
    return box._replace(corners=corners, written=written, area=area)


def _merge_entries(splits: list[WrittenSplit], work: Repair) -> list[WrittenSplit]:
    result = []
    for split in splits:
        merged: dict[Path, WrittenImage] = {}
        for image in split.images:
            if image.path in merged:
                first = merged[image.path]
                merged[image.path] = first._replace(boxes=first.boxes + image.boxes)
                work.done['second entries of an image merged with the first'] += 1
            else:
                merged[image.path] = image
        result.append(split._replace(images=tuple(merged.values())))
    return result


def _drop_copies(splits: list[WrittenSplit], work: Repair) -> list[WrittenSplit]:
    """Keep one of each set of duplicate images: in the test split, else in val, else the first."""
    rank = {split.name: index for index, split in enumerate(splits)}  # test comes last

    def leave_out(gone: set[tuple[str, Path]], what: str) -> None:
        nonlocal splits
        work.done[what] += len(gone)
        splits = _each_image(splits, lambda split, image: None if (split.name, image.path) in gone else image)

    def homes() -> dict[Path, list[str]]:
        return Evidence(tuple(splits), ()).file_splits

    shared = {path: names for path, names in homes().items() if len(names) > 1}
    last = {path: max(names, key=rank.__getitem__) for path, names in shared.items()}
    leave_out(
        {(name, path) for path, names in shared.items() for name in names if name != last[path]},
        'entries of images that are also in another split dropped',
    )
    groups: dict[Path, list[Path]] = {}
    for later, first in equal_files({path: work.facts[path] for path in homes()}).items():
        groups.setdefault(first, [first]).append(later)
    home = {path: names[0] for path, names in homes().items()}
    kept = {first: max(same, key=lambda path: rank[home[path]]) for first, same in groups.items()}
    gone = {(home[p], p) for first, same in groups.items() for p in same if p != kept[first]}
    leave_out(gone, 'copies of images dropped')
    while True:
        home = {path: names[0] for path, names in homes().items()}
        pairs = [
            (c.image, c.original) for c in near_copies({p: work.facts[p] for p in home}, home.__getitem__)
        ]
        pairs += [(a, b) for same in augmented_copies(tuple(splits)) for a in same for b in same]
        across = [pair for pair in pairs if home[pair[0]] != home[pair[1]]]
        if not across:
            return splits
        earlier = {min(pair, key=lambda path: rank[home[path]]) for pair in across}
        leave_out(
            {(home[path], path) for path in earlier}, 'near-duplicates of images in other splits dropped'
        )


def _mend_boxes(splits: list[WrittenSplit], work: Repair) -> list[WrittenSplit]:
    evidence = gather(splits, work.facts, Limits())
    return [_with_boxes(boxes, *_mended(boxes, work)) for boxes in evidence.boxes]


def _mended(boxes: Boxes, work: Repair) -> tuple[np.ndarray, np.ndarray]:
    """Return corners (N, 4) in pixels, clipped to the images, and a mask (N,) of boxes to keep."""
    corners, size = boxes.corners.copy(), np.tile(boxes.image_size, 2)
    written = np.array([[number(v) for v in (*box.written, *[None] * 4)[:4]] for box in boxes.flat])
    written = written.reshape(-1, 4)
    own = OWN_READING[boxes.split.format].corners
    texts = np.isfinite(written).all(axis=1) & ~np.isfinite(corners).all(axis=1)
    if boxes.split.format == 'coco':
        corners[texts] = own(written[texts])
        work.done['boxes written as text converted'] += int(texts.sum())
    corners[boxes.normalised] = (own(written) * size)[boxes.normalised]
    corners[boxes.in_pixels] = own(written)[boxes.in_pixels]
    work.done['boxes converted between fractions and pixels'] += int(
        (boxes.normalised | boxes.in_pixels).sum()
    )
    if (found := misread(boxes)) is not None:
        mask, reading = found
        unit = size if boxes.split.format == 'yolo' else 1.0
        corners[mask] = reading.corners(written * unit)[mask]
        work.done[f'boxes written as {reading.name} converted'] += int(mask.sum())
    clipped = np.clip(corners, 0, size)
    work.done['boxes clipped to their image'] += int(
        (np.abs(clipped - corners) > OUTSIDE_PX).any(axis=1).sum()
    )
    with np.errstate(invalid='ignore'):
        keep = (clipped[:, 2:] - clipped[:, :2] >= TINY_PX).all(axis=1)  # False for NaN
    work.done['boxes that are non-numeric, empty or outside their image dropped'] += int((~keep).sum())
    return clipped, keep


def _with_boxes(boxes: Boxes, corners: np.ndarray, keep: np.ndarray) -> WrittenSplit:
    """Return the split with new corners and only the boxes to keep."""
    changed = ~np.isclose(corners, boxes.corners, atol=1e-6).all(axis=1)
    flat = list(boxes.flat)
    for index in np.flatnonzero(keep):
        box, (x1, y1, x2, y2) = boxes.flat[index], corners[index].tolist()
        full = (x2 - x1) * (y2 - y1)
        sound = box.area is not None and 0 < box.area <= 1.02 * full + 1 and not changed[index]
        written = (x1, y1, x2 - x1, y2 - y1) if boxes.split.format == 'coco' else (x1, y1, x2, y2)
        if changed[index]:
            box = box._replace(corners=(x1, y1, x2, y2), written=written)
        flat[index] = box if sound else box._replace(area=full)
    return _regroup(boxes, flat, keep)


def _mend_categories(splits: list[WrittenSplit], work: Repair) -> list[WrittenSplit]:
    """Unify the classes of all splits, and drop boxes of unknown classes and duplicates."""
    evidence = gather(splits, {}, Limits())
    name_of = _final_names(evidence, work)
    order = [category for split in splits for category in sorted(split.categories, key=_by_id)]
    names = list(dict.fromkeys(name_of[category.name] for category in order))
    first = {'coco': 1, 'yolo': 0}.get(splits[0].format if splits else '')
    categories = tuple(Category(None if first is None else first + i, name) for i, name in enumerate(names))
    new_of = {category.name: category.name if first is None else category.id for category in categories}
    result = []
    for boxes in evidence.boxes:
        loose = {str(c.key): c.name for c in boxes.split.categories}
        keep = np.ones(len(boxes.flat), dtype=bool)
        flat = list(boxes.flat)
        for index, box in enumerate(flat):
            known = boxes.category[index] >= 0
            name = boxes.class_name(index) if known else loose.get(str(box.category))
            keep[index] = name is not None
            if name is not None:
                flat[index] = box._replace(category=new_of[name_of[name]])
                work.done['categories of boxes found as number or text'] += not known
        work.done['boxes of unknown categories dropped'] += int((~keep).sum())
        result.append(_drop_duplicates(_regroup(boxes, flat, keep)._replace(categories=categories), work))
    return result


def _final_names(evidence: Evidence, work: Repair) -> dict[str, str]:
    """Map each class name to its final spelling."""
    counts: Counter[str] = Counter()
    for boxes in evidence.boxes:
        counts.update(boxes.counts())
    final = {name: name.strip() or 'unnamed' for name in counts}
    for group in variants(counts):
        final |= dict.fromkeys(group, group[0].strip() or 'unnamed')
    work.done['class names changed'] += sum(name != new for name, new in final.items())
    return final


def _by_id(category: Category) -> tuple[bool, float, str]:
    value = number(category.id)
    return np.isnan(value), value, str(category.id)


def _regroup(boxes: Boxes, flat: Sequence[WrittenBox], keep: np.ndarray) -> WrittenSplit:
    """Return the split with these boxes instead of its own, restricted to those to keep."""
    new: list[list[WrittenBox]] = [[] for _ in boxes.split.images]
    for index in np.flatnonzero(keep).tolist():
        new[boxes.image[index]].append(flat[index])
    images = zip(boxes.split.images, new, strict=True)
    return boxes.split._replace(images=tuple(image._replace(boxes=tuple(own)) for image, own in images))


def _drop_duplicates(split: WrittenSplit, work: Repair) -> WrittenSplit:
    (boxes,) = gather([split], {}, Limits()).boxes
    keep = np.ones(len(boxes.flat), dtype=bool)
    keep[duplicates(boxes)[1]] = False
    work.done['duplicate boxes dropped'] += int((~keep).sum())
    return _regroup(boxes, boxes.flat, keep)


def _rewrite_images(splits: list[WrittenSplit], work: Repair) -> list[WrittenSplit]:
    """Rename images to match their content, and store rotated images upright without the EXIF tag."""

    def change(split: WrittenSplit, image: WrittenImage) -> WrittenImage:
        facts, path = work.facts[image.path], image.path
        suffixes = SUFFIXES.get(facts.format, {path.suffix.lower()})
        renamed = path.suffix.lower() not in suffixes
        if not renamed and facts.orientation == 1:
            return image
        name = path.with_suffix(COMMON_SUFFIX.get(facts.format, min(suffixes))).name if renamed else path.name
        work.done['images renamed to the suffix of their content'] += renamed
        work.done['images stored without EXIF rotation'] += facts.orientation != 1
        new = work.scratch / f'{work.done.total()}' / name
        new.parent.mkdir(parents=True)
        if facts.orientation == 1:
            shutil.copyfile(path, new)
        else:
            _store_upright(image, facts, new)
        return image._replace(path=new)

    return _each_image(splits, change)


def _store_upright(image: WrittenImage, facts: ImageFacts, path: Path) -> None:
    """Write the pixels in the orientation of the boxes, without the EXIF tag."""
    with Image.open(image.path) as opened:
        unrotated = image.size == facts.size and facts.size != facts.upright_size
        pixels = opened if unrotated else ImageOps.exif_transpose(opened)
        options = {'quality': JPEG_QUALITY} if facts.format in ('JPEG', 'MPO') else {}
        pixels.save(path, format='JPEG' if options else facts.format, exif=b'', **options)


def _number(splits: list[WrittenSplit], work: Repair) -> list[WrittenSplit]:
    """Number the images of each split from 1; annotations are numbered on writing."""
    return [
        split._replace(images=tuple(image._replace(id=i) for i, image in enumerate(split.images, start=1)))
        for split in splits
    ]
