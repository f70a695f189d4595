"""Test whether labels depend on box contents, with a small classifier of crops compared with shuffled labels."""

from typing import NamedTuple

import cv2
import numpy as np
from scipy.stats import rankdata

PATCH = 32  # side of resized crops in pixels
SHUFFLES = 16  # permutations of the labels to estimate chance level
COMPONENTS = 64  # principal components used by the classifier
FOLDS = 4
LEAST_BOXES = 8  # per class, required to include it
RING = 0.35  # width of the context around a crop, relative to the box
CELLS, DIRECTIONS = 4, 8  # of the gradient histograms

Array = np.ndarray


class Separability(NamedTuple):
    """Accuracy of a classifier on the labels of held-out boxes, compared with chance.

    The metric is the area under the ROC curve, averaged over classes: 0.5 is chance, 1 is perfect.
    """

    auc: float
    chance: float  # mean for shuffled labels
    spread: float  # standard deviation for shuffled labels
    boxes: int

    @property
    def sigmas(self) -> float:
        """Standard deviations above chance."""
        return (self.auc - self.chance) / max(self.spread, 1e-6)

    @property
    def is_chance(self) -> bool:
        """Whether the result is no better than chance although the data suffice to show more than a weak dependence."""
        excess = self.auc - self.chance
        return (self.sigmas < 2.5 or excess < 0.04) and excess + 2 * self.spread < 0.1

    def __str__(self) -> str:
        return f'{self.auc:.2f} (chance {self.chance:.2f} +- {self.spread:.2f}, {self.boxes} boxes)'


def describe(image: Array, boxes_xyxy_px: Array) -> Array:
    """Compute descriptors (N, D) of crops: colours, gradients, contrast to the context, size.

    Args:
        image: Image, (H, W, 3) uint8.
        boxes_xyxy_px: Boxes (N, 4), clipped to the image.
    """
    lab = cv2.cvtColor(image, cv2.COLOR_BGR2LAB)
    height, width = image.shape[:2]
    rows = []
    for x1, y1, x2, y2 in boxes_xyxy_px:
        margin_x, margin_y = RING * (x2 - x1), RING * (y2 - y1)
        inner = _crop(lab, x1, y1, x2, y2)
        outer = _crop(lab, x1 - margin_x, y1 - margin_y, x2 + margin_x, y2 + margin_y)
        patch, around = (
            cv2.resize(part, (PATCH, PATCH), interpolation=cv2.INTER_AREA) for part in (inner, outer)
        )
        layout = cv2.resize(patch, (4, 4), interpolation=cv2.INTER_AREA).ravel() / 64
        around_layout = cv2.resize(around, (8, 8), interpolation=cv2.INTER_AREA).astype(np.float32)
        ring = np.concatenate(
            [around_layout[[0, -1]].reshape(-1, 3), around_layout[1:-1, [0, -1]].reshape(-1, 3)]
        )
        mean, spread = inner.reshape(-1, 3).mean(0), inner.reshape(-1, 3).std(0)
        contrast = np.concatenate([mean - ring.mean(0), np.abs(mean - ring.mean(0)), spread - ring.std(0)])
        edges = np.concatenate([_gradients(part[..., 0]) for part in (patch, around)])
        w, h = max(x2 - x1, 1), max(y2 - y1, 1)
        size = np.log([w, h, w / h, w * h / (width * height)])
        rows.append(np.concatenate([layout, mean / 32, spread / 16, contrast / 16, edges * 2, size]))
    return np.array(rows, dtype=np.float64).reshape(len(rows), -1)


def separability(
    features: Array, labels: Array, groups: Array, within_groups: bool = False
) -> Separability | None:
    """Cross-validate a ridge classifier of the labels; None without two classes with enough boxes and images.

    Args:
        features: Descriptors (N, D).
        labels: Labels (N,) int.
        groups: Image of each box, (N,) int; training and test folds have no image in common.
        within_groups: Compare with labels shuffled among the boxes of each image instead of all boxes.
    """
    classes = _frequent(labels)
    kept = np.isin(labels, classes)
    features, labels, groups = features[kept], labels[kept], groups[kept]
    if len(classes) < 2 or len(np.unique(groups)) < 2 * FOLDS:
        return None
    rng = np.random.default_rng(0)
    fold_of = dict(zip(np.unique(groups), rng.permutation(len(np.unique(groups))) % FOLDS, strict=True))
    folds = np.array([fold_of[group] for group in groups])
    solvers = [_Ridge(features[folds != fold]) for fold in range(FOLDS)]
    tested = [solver.project(features[folds == fold]) for fold, solver in enumerate(solvers)]

    def auc(shuffled: Array) -> float:
        per_fold = []
        for fold, solver in enumerate(solvers):
            test = folds == fold
            scores = tested[fold] @ solver.fit(one_hot(shuffled[~test], classes))
            per_fold.append(_aucs(scores, one_hot(shuffled[test], classes)).diagonal())
        return float(np.nanmean(np.array(per_fold)))

    chance = [auc(_shuffled(labels, groups if within_groups else None, rng)) for _ in range(SHUFFLES)]
    return Separability(auc(labels), float(np.mean(chance)), float(np.std(chance)), len(labels))


def transfer(
    features: Array, labels: Array, other_features: Array, other_labels: Array
) -> tuple[Array, Array]:
    """Train on one set of boxes and rank those of another.

    Returns:
        Classes (K,) with enough boxes in both sets, and areas under the ROC curve (K, K): how well the classifier of
        class i (row) separates class j (column) of the other set from its other classes.
    """
    classes = np.intersect1d(_frequent(labels), _frequent(other_labels))
    own, theirs = np.isin(labels, classes), np.isin(other_labels, classes)
    if len(classes) < 2:
        return classes, np.zeros((len(classes),) * 2)
    solver = _Ridge(features[own])
    scores = solver.project(other_features[theirs]) @ solver.fit(one_hot(labels[own], classes))
    return classes, _aucs(scores, one_hot(other_labels[theirs], classes))


def one_hot(labels: Array, classes: Array) -> Array:
    """(N,) -> (N, K) bool."""
    return labels[:, None] == classes[None]


class _Ridge:
    """Multi-target ridge regression on the first principal components of the features."""

    def __init__(self, features: Array) -> None:
        self.mean = features.mean(0)
        self.scale = features.std(0) + 1e-6
        x = (features - self.mean) / self.scale
        variances, axes = np.linalg.eigh(x.T @ x / len(x))  # ascending
        kept = min(COMPONENTS, x.shape[1], max(2, len(x) // 8))
        self.axes = axes[:, -kept:] / (np.sqrt(variances[-kept:].clip(0)) + 1e-6)
        x = x @ self.axes
        self.inverse = np.linalg.inv(x.T @ x + 0.1 * len(x) * np.eye(kept)) @ x.T

    def fit(self, targets: Array) -> Array:
        """Weights (D, K) for targets (N, K) bool."""
        return self.inverse @ (targets - targets.mean(0))

    def project(self, features: Array) -> Array:
        """Project features (M, D_in) to the principal components (M, D)."""
        return ((features - self.mean) / self.scale) @ self.axes


def _aucs(scores: Array, targets: Array) -> Array:
    """(N, K) scores and (N, L) bool -> (K, L) areas under the ROC curve; NaN for targets that are all equal."""
    ranks = rankdata(scores, axis=0)  # (N, K)
    positives = targets.sum(0)  # (L,)
    negatives = len(targets) - positives
    with np.errstate(invalid='ignore', divide='ignore'):
        return (ranks.T @ targets - positives * (positives + 1) / 2) / (positives * negatives)


def _frequent(labels: Array) -> Array:
    values, counts = np.unique(labels, return_counts=True)
    return values[counts >= LEAST_BOXES]


def _shuffled(labels: Array, groups: Array | None, rng: np.random.Generator) -> Array:
    if groups is None:
        return rng.permutation(labels)
    shuffled = labels.copy()
    for group in np.unique(groups):
        members = np.flatnonzero(groups == group)
        shuffled[members] = rng.permutation(labels[members])
    return shuffled


def _gradients(grey: Array) -> Array:
    """Histograms of gradient orientations per cell of a square patch, after Dalal and Triggs (2005)."""
    dy, dx = np.gradient(grey.astype(np.float32))
    strength = np.hypot(dx, dy)
    direction = (np.arctan2(dy, dx) % np.pi * (DIRECTIONS / np.pi)).astype(int) % DIRECTIONS
    cell = np.arange(PATCH) * CELLS // PATCH
    where = (cell[:, None] * CELLS + cell) * DIRECTIONS + direction
    counts = np.bincount(where.ravel(), strength.ravel(), CELLS * CELLS * DIRECTIONS)
    return np.sqrt(counts / (np.linalg.norm(counts) + 10))


def _crop(image: Array, x1: float, y1: float, x2: float, y2: float) -> Array:
    height, width = image.shape[:2]
    left, top = int(np.clip(x1, 0, width - 1)), int(np.clip(y1, 0, height - 1))
    return image[top : max(int(np.ceil(y2)), top + 1), left : max(int(np.ceil(x2)), left + 1)]
