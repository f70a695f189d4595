"""Run all checks on a dataset and build the report."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ddetr.datasets.formats import find_dataset
from ddetr.datasets.formats.records import WrittenSplit

from . import (  # noqa: F401 (imported to register their checks)
    box_checks,
    category_checks,
    class_checks,
    file_checks,
    id_checks,
    split_checks,
)
from .checks import find_faults
from .evidence import Evidence, Limits, gather
from .image_facts import read_all_facts
from .report import ClassSummary, Report, SplitSummary


def examine(
    data: str | Path | Sequence[WrittenSplit],
    *,
    images: bool = True,
    num_queries: int | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    stride: int | None = None,
    workers: int | None = None,
) -> Report:
    """Find every fault of a dataset.

    Args:
        data: Folder of a dataset in COCO, VOC or YOLO format, or its splits as read from disk. For a config, see
            `ddetr.apis.check_data`.
        images: Open the images. Otherwise only annotation files and folder listings are checked.
        num_queries: Number of queries of the detector; by default 300.
        sizes: Maximum long and short sides of training images in pixels; by default 1333 x 800.
        stride: Stride of the detector's finest feature level in pixels; by default 8.
        workers: Number of threads that open images; by default one per CPU.

    Raises:
        InputError: The dataset does not exist.
    """
    default = Limits()
    limits = Limits(
        num_queries or default.num_queries, tuple(sizes or default.sizes), stride or default.stride
    )
    notes: tuple[str, ...] = ()
    if isinstance(data, (str, Path)):
        found = find_dataset(data)
        splits, notes = tuple(split.read() for split in found.splits.values()), found.notes
    else:
        splits = tuple(data)
    splits = tuple(map(_with_plain_paths, splits))
    paths = list(dict.fromkeys(image.path for split in splits for image in split.images))
    facts = read_all_facts(paths, workers) if images else {}
    evidence = gather(splits, facts, limits)
    faults = tuple(find_faults(evidence))
    return Report(faults, _split_rows(evidence), _class_rows(evidence), evidence, notes)


def _with_plain_paths(split: WrittenSplit) -> WrittenSplit:
    """Return the split with normalised paths, so that each file has a single path."""
    images = (image._replace(path=Path(os.path.normpath(image.path))) for image in split.images)
    return split._replace(images=tuple(images))


def _split_rows(evidence: Evidence) -> tuple[SplitSummary, ...]:
    return tuple(
        SplitSummary(split.name, split.format, str(split.source), len(split.images), len(boxes.flat))
        for split, boxes in zip(evidence.splits, evidence.boxes, strict=True)
    )


def _class_rows(evidence: Evidence) -> tuple[ClassSummary, ...]:
    counts = [boxes.counts() for boxes in evidence.boxes]
    areas: dict[str, list[np.ndarray]] = {}
    for boxes in evidence.boxes:
        known = boxes.solid & (boxes.category >= 0)
        order = np.argsort(boxes.category[known], kind='stable')
        area, category = boxes.area[known][order], boxes.category[known][order]
        edges = np.searchsorted(category, np.arange(len(boxes.split.categories) + 1))
        for index, each in enumerate(boxes.split.categories):
            areas.setdefault(each.name, []).append(area[edges[index] : edges[index + 1]])
    rows = []
    for name, parts in areas.items():
        joined = np.concatenate(parts)
        side = float(np.sqrt(np.median(joined))) if len(joined) else float('nan')
        rows.append(ClassSummary(name, tuple(count.get(name, 0) for count in counts), side))
    return tuple(rows)
