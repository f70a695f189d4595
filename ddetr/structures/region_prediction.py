"""Records that pass between the steps of a region-based detector.

Shapes: B batch, L feature levels, N_l anchors of level l (row after row, cell after cell), N anchors of all levels,
G ground-truth boxes of one image, R regions of all images together, P positive regions, K classes.
Boxes are x1 y1 x2 y2 in pixels of the resized, padded image.
"""

from typing import NamedTuple

from torch import Tensor


class AnchorPredictions(NamedTuple):
    """Predictions of the first stage for every anchor."""

    logits: list[Tensor]  # L x (B, N_l), objectness
    deltas: list[Tensor]  # L x (B, N_l, 4), from the anchor to the object
    anchors: list[Tensor]  # L x (N_l, 4)


class Proposals(NamedTuple):
    """Regions of one image for the second stage, sorted by score."""

    boxes_xyxy_px: Tensor  # (n, 4)
    scores: Tensor  # (n,)


class Sampled(NamedTuple):
    """Indices of the candidates of one image that contribute to the losses."""

    positive: Tensor  # (P,) int64
    negative: Tensor  # (n,) int64
    avg_factor: int  # contribution of this image to the normaliser of the losses


class RoITargets(NamedTuple):
    """Sampled regions and their targets in the second stage."""

    boxes_xyxy_px: Tensor  # (R, 4)
    labels: Tensor  # (R,) int64, K = background
    gt_boxes_xyxy_px: Tensor  # (P, 4), of the positive regions, in their order


class RoIPredictions(NamedTuple):
    """Predictions of the second stage for every region."""

    logits: Tensor  # (R, K + 1), the last being background
    deltas: Tensor  # (R, 4 * K), or (R, 4) if class-agnostic
