"""Select detections and convert them to other formats."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from mmengine.structures import InstanceData

from ddetr.structures import DetDataSample
from ddetr.utils.errors import InputError, did_you_mean


class Selection(NamedTuple):
    """Criteria for the detections to keep in an image."""

    score_thr: float = 0.3
    labels: frozenset[int] | None = None  # None: all classes
    top_k: int | None = None  # maximum number of detections

    def __call__(self, sample: DetDataSample) -> DetDataSample:
        """Copy a sample to the CPU with only the selected detections."""
        found = sample.pred_instances.cpu()
        kept = found.scores >= self.score_thr
        if self.labels is not None:
            kept &= sum((found.labels == label for label in self.labels), start=kept.new_zeros(kept.shape))
        selected = DetDataSample(metainfo=sample.metainfo)
        selected.pred_instances = found[kept][: self.top_k]
        return selected


def labels_of(wanted: Sequence[str | int], classes: Sequence[str]) -> frozenset[int]:
    """Labels of classes given by name or by index.

    Raises:
        InputError: Unknown class.
    """
    labels = set()
    for entry in wanted:
        if entry in classes:
            labels.add(list(classes).index(str(entry)))
        elif str(entry).isdecimal() and int(entry) < len(classes):
            labels.add(int(entry))
        else:
            known = ', '.join(f'{label} {name}' for label, name in enumerate(classes[:20]))
            more = f' and {len(classes) - 20} more' if len(classes) > 20 else ''
            hint = did_you_mean(str(entry), classes, f': {known}{more}.')
            raise InputError(
                f'class {entry!r} is not one of the {len(classes)} classes of the checkpoint{hint}'
            )
    return frozenset(labels)


def detection_rows(sample: DetDataSample, classes: Sequence[str]) -> list[dict[str, Any]]:
    """Detections as plain values: `label` (from 0), `class`, `score`, `bbox` (x1 y1 x2 y2 in pixels)."""
    found = sample.pred_instances
    rows = zip(found.labels.tolist(), found.scores.tolist(), found.bboxes.tolist(), strict=True)
    return [{'label': i, 'class': classes[i], 'score': score, 'bbox': box} for i, score, box in rows]


def import_supervision() -> Any:
    """Import the optional package `supervision`. Raise InputError if it is not installed."""
    try:
        import supervision
    except ImportError as error:
        raise InputError(
            f"this needs the package supervision ({error}): pip install 'ddetr[supervision]'."
        ) from error
    return supervision


def to_supervision(found: InstanceData, classes: Sequence[str] | None = None) -> Any:
    """Convert to `supervision.Detections`, with class names in `data['class_name']` if `classes` is given."""
    arrays = found.cpu().numpy()
    names = (
        {} if classes is None else {'class_name': np.array([classes[i] for i in arrays.labels], dtype=str)}
    )
    return import_supervision().Detections(
        xyxy=arrays.bboxes.reshape(-1, 4), confidence=arrays.scores, class_id=arrays.labels, data=names
    )
