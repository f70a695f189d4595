"""Export of a dataset and its faults to dataset viewers."""

from collections import defaultdict
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from ddetr.utils.errors import InputError

from .evidence import Boxes
from .report import Report


def to_fiftyone(report: Report, name: str) -> str:
    """Create a persistent FiftyOne dataset with images, boxes and, as tags, faults; return a line on how to open it.

    Raises:
        InputError: FiftyOne is not installed, or already has a dataset of this name.
    """
    fiftyone = _import_fiftyone()
    if fiftyone.dataset_exists(name):
        raise InputError(f'FiftyOne already has a dataset {name!r}: choose another name, or delete it there.')
    tags: dict[Path, list[str]] = defaultdict(list)
    for fault in report.faults:
        for path in fault.paths:
            tags[path].append(fault.name)
    samples = []
    for boxes in report.evidence.boxes:
        for index, image in enumerate(boxes.split.images):
            if report.evidence.exists(image.path):
                sample = fiftyone.Sample(
                    filepath=str(image.path.resolve()), tags=[boxes.split.name, *tags[image.path]]
                )
                sample['ground_truth'] = fiftyone.Detections(detections=_detections(fiftyone, boxes, index))
                samples.append(sample)
    dataset = fiftyone.Dataset(name, persistent=True)
    dataset.add_samples(samples)
    return f'FiftyOne dataset {name!r} has {len(samples)} images: fiftyone app launch {name}'


def _import_fiftyone() -> ModuleType:
    try:
        import fiftyone
    except ImportError:
        raise InputError('FiftyOne is not installed: pip install fiftyone.') from None
    return fiftyone


def _detections(fiftyone: ModuleType, boxes: Boxes, index: int) -> list[Any]:
    """Convert an image's valid boxes to FiftyOne's format: x, y, width, height as fractions."""
    found = []
    for i in range(*np.searchsorted(boxes.image, [index, index + 1])):
        width, height = boxes.image_size[i]
        if boxes.solid[i] and width > 0:
            (x, y), (w, h) = boxes.corners[i, :2].tolist(), boxes.extent[i].tolist()
            place = [x / width, y / height, w / width, h / height]
            found.append(fiftyone.Detection(label=boxes.class_name(i), bounding_box=place))
    return found
