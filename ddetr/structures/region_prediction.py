"""Records passed between the stages of a region-based detector.

Shapes: B batch size, L feature levels, N_l anchors of level l (in row-major order), N anchors of all levels,
G ground-truth boxes of one image, R regions of all images, P positive regions, K classes.
Boxes are x1 y1 x2 y2 in pixels of the resized, padded image.
"""

from typing import NamedTuple

from torch import Tensor


class AnchorPredictions(NamedTuple):
    """First-stage predictions for every anchor."""

    logits: list[Tensor]  # L x (B, N_l), objectness
    deltas: list[Tensor]  # L x (B, N_l, 4), regression deltas from anchor to object
    anchors: list[Tensor]  # L x (N_l, 4)


class Proposals(NamedTuple):
    """Regions of one image for the second stage, sorted by score."""

    boxes_xyxy_px: Tensor  # (n, 4)
    scores: Tensor  # (n,)


class Sampled(NamedTuple):
    """Indices of the candidates in one image that contribute to the losses."""

    positive: Tensor  # (P,) int64
    negative: Tensor  # (n,) int64
    avg_factor: int  # contribution of this image to the loss normaliser


class RoITargets(NamedTuple):
    """Sampled regions and their second-stage targets."""

    boxes_xyxy_px: Tensor  # (R, 4)
    labels: Tensor  # (R,) int64, K = background
    gt_boxes_xyxy_px: Tensor  # (P, 4), one per positive region, in the same order


class RoIPredictions(NamedTuple):
    """Second-stage predictions for every region."""

    logits: Tensor  # (R, K + 1), last class: background
    deltas: Tensor  # (R, 4 * K), or (R, 4) if class-agnostic
