"""Kinds of errors and their cost in AP (Bolya et al., "TIDE: A General Toolbox for Identifying Object Detection
Errors", 2020, sections 2.2 and 2.3).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from pycocotools import mask

from .runs import FOUND, IGNORED, POSITIVE_IOU, Dataset, Run

BACKGROUND_IOU = 0.1
KINDS = {
    'classification': 'correct location, wrong class',
    'localisation': 'correct class, box too inaccurate (IoU 0.1 to 0.5)',
    'both': 'wrong class and inaccurate box',
    'duplicate': 'object already found by a detection with a higher score',
    'background': 'no object there (IoU below 0.1)',
    'missed': 'object without any detection, not even one of the errors above',
}
CLASSIFICATION, LOCALISATION, BOTH, DUPLICATE, BACKGROUND, MISSED = range(len(KINDS))
NONE = -1


class Errors(NamedTuple):
    """Errors of the N detections and G objects of a run."""

    kind: np.ndarray  # (N,) index into KINDS, NONE for correct detections
    target: np.ndarray  # (N,) object of a classification or localisation error, -1 for others
    repairs: np.ndarray  # (N,) bool: highest-scoring error on an object that was not found
    missed: np.ndarray  # (G,) bool

    def counts(self) -> list[int]:
        """By kind."""
        return [*np.bincount(self.kind[self.kind >= 0], minlength=MISSED).tolist(), int(self.missed.sum())]


class Ranking(NamedTuple):
    """Input of the AP computation."""

    label: np.ndarray  # (N,)
    scores: np.ndarray  # (N,)
    correct: np.ndarray  # (N,) bool
    counted: np.ndarray  # (N,) bool, False = ignored


class Costs(NamedTuple):
    """AP at IoU 0.5 in [0, 1], and the gains from removing errors."""

    ap50: float
    by_kind: tuple[float, ...]  # in the order of KINDS, each fixed separately
    false_positives: float  # with all false detections ranked below all correct ones
    false_negatives: float  # with undetected objects not counted


def find_errors(run: Run, dataset: Dataset) -> Errors:
    """Classify all false detections, and find the objects without any nearby detection."""
    kind, target = np.full(len(run.scores), NONE), np.full(len(run.scores), -1)
    found = run.found_truth(len(dataset.label))
    for detections, objects in _by_image(run, dataset):
        wrong = detections[run.state[detections] != FOUND]
        if len(wrong):
            kind[wrong], target[wrong] = _classify(run, dataset, wrong, objects, found)
    # detections are sorted by score within an image, and all errors on an object are in its image
    about_unfound = np.flatnonzero((target >= 0) & ~found[target])
    repairs = np.zeros(len(kind), dtype=bool)
    best = np.unique(target[about_unfound], return_index=True)[1]
    repairs[about_unfound[best]] = True
    missed = ~found & ~dataset.crowd
    missed[target[about_unfound]] = False
    return Errors(kind, target, repairs, missed)


def _by_image(run: Run, dataset: Dataset) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield the indices of the detections and objects in each image."""
    objects = np.flatnonzero(~dataset.crowd)
    starts = np.searchsorted(run.image, np.arange(len(dataset.image_ids) + 1))
    for image in range(len(dataset.image_ids)):
        yield np.arange(starts[image], starts[image + 1]), objects[dataset.image[objects] == image]


def _classify(
    run: Run, dataset: Dataset, wrong: np.ndarray, objects: np.ndarray, found: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return kind (the first that applies) and target of the false detections `wrong` in an image with `objects`."""
    none = np.full(len(wrong), -1)
    if not len(objects):
        return np.full(len(wrong), BACKGROUND), none
    boxes = run.boxes_xywh_px[wrong], dataset.boxes_xywh_px[objects]
    iou = mask.iou(*boxes, np.zeros(len(objects), dtype=np.uint8))  # (wrong, objects)
    same = run.label[wrong][:, None] == dataset.label[objects]
    of_class, of_others = iou * same, iou * ~same
    best = of_class.max(1)
    conditions = [
        (best >= BACKGROUND_IOU) & (best <= POSITIVE_IOU),
        of_others.max(1) >= POSITIVE_IOU,
        (of_class * found[objects]).max(1) >= POSITIVE_IOU,
        iou.max(1) <= BACKGROUND_IOU,
    ]
    kinds = np.select(conditions, [LOCALISATION, CLASSIFICATION, DUPLICATE, BACKGROUND], BOTH)
    nearest = [objects[of_class.argmax(1)], objects[of_others.argmax(1)]]
    return kinds, np.select([kinds == LOCALISATION, kinds == CLASSIFICATION], nearest, none)


def error_costs(run: Run, dataset: Dataset, errors: Errors) -> Costs:
    """Compute the AP at IoU 0.5, and its gain if all errors of one kind are corrected."""
    positives = np.bincount(dataset.label[~dataset.crowd], minlength=len(dataset.classes))
    found, counted = run.state == FOUND, run.state != IGNORED
    base = Ranking(run.label, run.scores, found, counted)
    ap50 = _mean_ap(base, positives, positives)

    def gain(ranking: Ranking, remaining: np.ndarray = positives) -> float:
        return max(_mean_ap(ranking, remaining, positives) - ap50, 0.0)

    costs = []
    for kind in range(MISSED):
        repaired = (errors.kind == kind) & errors.repairs
        label = np.where(repaired, dataset.label[errors.target], run.label)
        kept = counted & (errors.kind != kind) | repaired
        costs.append(gain(Ranking(label, run.scores, found | repaired, kept)))
    without_missed = positives - np.bincount(dataset.label[errors.missed], minlength=len(positives))
    costs.append(gain(base, without_missed))
    objects_found = run.found_truth(len(dataset.label))
    only_found = np.bincount(dataset.label[objects_found], minlength=len(positives))
    ranked = gain(base._replace(scores=found.astype(float)))
    return Costs(ap50, tuple(costs), ranked, gain(base, only_found))


def _mean_ap(ranking: Ranking, positives: np.ndarray, of_dataset: np.ndarray) -> float:
    """Mean AP over the dataset's classes; classes without remaining `positives` (K,) count as 0."""
    aps = []
    for k in np.flatnonzero(of_dataset):
        chosen = ranking.counted & (ranking.label == k)
        aps.append(average_precision(ranking.scores[chosen], ranking.correct[chosen], int(positives[k])))
    return float(np.mean(aps))


def average_precision(scores: np.ndarray, correct: np.ndarray, positives: int) -> float:
    """AP interpolated at 101 recalls, as in pycocotools; 0 without positives."""
    if positives == 0 or not len(scores):
        return 0.0
    hits = correct[np.argsort(-scores, kind='stable')].cumsum()  # (N,)
    precision = hits / np.arange(1, len(hits) + 1)
    highest = np.maximum.accumulate(precision[::-1])[::-1]
    at = np.searchsorted(hits / positives, np.linspace(0, 1, 101), side='left')
    return float(np.append(highest, 0.0)[at].mean())
