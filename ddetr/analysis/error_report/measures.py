"""Metrics of the report other than the kinds of errors."""

import contextlib
import copy
import io
from typing import NamedTuple

import numpy as np
from pycocotools import mask

from .runs import FALSE, FOUND, IGNORED, POSITIVE_IOU, Dataset, Run

STATS = ('AP', 'AP50', 'AP75', 'AP small', 'AP medium', 'AP large')
RECALLS = ('AR 1', 'AR 10', 'AR 100', 'AR small', 'AR medium', 'AR large')
CURVE_IOUS = (0.5, 0.75, 0.9)
BINS = 10


class Calibration(NamedTuple):
    """Calibration of scores, in `BINS` equal intervals of [0, 1]."""

    counts: np.ndarray  # (BINS,)
    score: np.ndarray  # (BINS,), mean; NaN for empty bins
    precision: np.ndarray  # (BINS,), fraction that match an object
    error: float  # expected calibration error: mean of |score - precision|, weighted by count


class CountGroup(NamedTuple):
    """Images with a similar number of objects."""

    name: str
    images: int
    ap: float  # -1 without objects
    ap50: float


class ImageErrors(NamedTuple):
    """Errors per image (I,), for detections above a score."""

    missed: np.ndarray  # objects without a matching detection
    false: np.ndarray  # detections without a matching object

    @property
    def total(self) -> np.ndarray:
        """(I,)"""
        return self.missed + self.false


def summary(run: Run) -> np.ndarray:
    """Return pycocotools' twelve numbers in its order (`STATS`, then `RECALLS`); -1 if undefined."""
    evaluation = copy.copy(run.evaluation)
    with contextlib.redirect_stdout(io.StringIO()):
        evaluation.summarize()
    return evaluation.stats


def mean_curve(run: Run, iou: float, label: int | None = None) -> np.ndarray | None:
    """Return precision (101,) at recalls 0 to 1, for one class or averaged over classes; None without objects."""
    params, precision = run.evaluation.params, run.evaluation.eval['precision']  # (T, R, K, A, M)
    at = int(np.flatnonzero(np.isclose(params.iouThrs, iou))[0])
    curves = precision[at, :, :, 0, -1]  # (R, K)
    curves = curves[:, curves[0] > -1] if label is None else curves[:, [label]]
    return curves.mean(1) if curves.size and curves.min() > -1 else None


def class_column(dataset: Dataset, run: Run, label: int) -> int:
    """Return pycocotools' index of a class; it sorts by category id."""
    return list(run.evaluation.params.catIds).index(dataset.category_ids[label])


def confusion(run: Run, dataset: Dataset, score_thr: float) -> np.ndarray:
    """Count pairs of object class (rows) and detected class (columns), (K + 1, K + 1); the last index means none.

    Detections above the score and objects are matched regardless of class at an IoU of at least 0.5, highest first.
    Detections in crowd regions do not count.
    """
    classes = len(dataset.classes)
    matrix = np.zeros((classes + 1, classes + 1), dtype=int)
    used = np.flatnonzero((run.scores >= score_thr) & (run.state != IGNORED))
    objects = np.flatnonzero(~dataset.crowd)
    for image in range(len(dataset.image_ids)):
        here, there = used[run.image[used] == image], objects[dataset.image[objects] == image]
        free_here, free_there = np.ones(len(here), dtype=bool), np.ones(len(there), dtype=bool)
        if len(here) and len(there):
            boxes = run.boxes_xywh_px[here], dataset.boxes_xywh_px[there]
            iou = mask.iou(*boxes, np.zeros(len(there), dtype=np.uint8))
            for flat in np.argsort(-iou, axis=None, kind='stable'):
                i, j = divmod(int(flat), len(there))
                if iou[i, j] < POSITIVE_IOU:
                    break
                if free_here[i] and free_there[j]:
                    free_here[i] = free_there[j] = False
                    matrix[dataset.label[there[j]], run.label[here[i]]] += 1
        np.add.at(matrix, (dataset.label[there[free_there]], classes), 1)
        np.add.at(matrix, (classes, run.label[here[free_here]]), 1)
    return matrix


def calibration(run: Run) -> Calibration:
    """Measure how often detections of a given score match an object at IoU 0.5."""
    counted = run.state != IGNORED
    scores, found = run.scores[counted], run.state[counted] == FOUND
    index = np.clip((scores * BINS).astype(int), 0, BINS - 1)
    count = np.bincount(index, minlength=BINS)
    with np.errstate(invalid='ignore'):
        mean_score = np.bincount(index, scores, BINS) / count
        precision = np.bincount(index, found, BINS) / count
    gaps = np.nan_to_num(np.abs(mean_score - precision)) * count
    return Calibration(count, mean_score, precision, float(gaps.sum() / max(count.sum(), 1)))


def ap_by_count(run: Run, dataset: Dataset) -> list[CountGroup]:
    """Return the AP on images with 1, 2 to 3, 4 to 7, ... objects; empty groups are omitted."""
    objects = dataset.objects_per_image()
    groups, low = [CountGroup('0', int((objects == 0).sum()), -1.0, -1.0)], 1
    while low <= objects.max():
        high = 2 * low - 1
        images = np.flatnonzero((objects >= low) & (objects <= high))
        name = str(low) if low == high else f'{low}-{high}'
        groups.append(CountGroup(name, len(images), *(_ap_on(run, images) if len(images) else (-1.0, -1.0))))
        low *= 2
    return [group for group in groups if group.images]


def _ap_on(run: Run, images: np.ndarray) -> tuple[float, float]:
    """Return AP and AP50 on a subset of images, by letting pycocotools accumulate only their matches."""
    whole = run.evaluation
    part, total = copy.copy(whole), len(whole.params.imgIds)
    part.params = copy.deepcopy(whole.params)
    part.params.imgIds = [whole.params.imgIds[i] for i in images]
    part._paramsEval = part.params
    cells = len(whole.params.catIds) * len(whole.params.areaRng)
    part.evalImgs = [whole.evalImgs[cell * total + i] for cell in range(cells) for i in images]
    with contextlib.redirect_stdout(io.StringIO()):
        part.accumulate()
    values = part.eval['precision'][:, :, :, 0, -1]

    def mean(of: np.ndarray) -> float:
        return float(of[of > -1].mean()) if (of > -1).any() else -1.0

    return mean(values), mean(values[0])


def image_errors(run: Run, dataset: Dataset, score_thr: float) -> ImageErrors:
    """Count the errors that are visible when detections above a score are shown."""
    images = len(dataset.image_ids)
    missed = ~run.found_truth(len(dataset.label), score_thr) & ~dataset.crowd
    false = (run.state == FALSE) & (run.scores >= score_thr)
    return ImageErrors(
        np.bincount(dataset.image[missed], minlength=images), np.bincount(run.image[false], minlength=images)
    )


def most_confused(matrix: np.ndarray, limit: int) -> list[tuple[int, int, int]]:
    """Return (true label, detected label, count) of the most frequent confusions, most frequent first."""
    between = matrix[:-1, :-1] * ~np.eye(len(matrix) - 1, dtype=bool)
    order = np.argsort(-between, axis=None, kind='stable')[:limit]
    pairs = [divmod(int(flat), len(between)) for flat in order]
    return [(a, b, int(between[a, b])) for a, b in pairs if between[a, b]]


def worst_first(totals: np.ndarray, limit: int) -> list[int]:
    """Return the images with the most errors, excluding those without errors."""
    order = np.argsort(-totals, kind='stable')[:limit]
    return [int(image) for image in order if totals[image] > 0]
