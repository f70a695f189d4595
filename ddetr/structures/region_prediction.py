"""Records that flow between the parts of a region-based detector.

Shapes: B batch, L feature levels, N_l anchors of level l (row after row, cell after cell), N anchors of all levels,
G ground-truth boxes of one image, R regions of all images together, P those of them that hold an object, K classes.
Boxes are x1 y1 x2 y2 in pixels of the resized, padded image.
"""

from typing import NamedTuple

from torch import Tensor


class AnchorPredictions(NamedTuple):
    """What the first stage says about every anchor."""

    logits: list[Tensor]  # L x (B, N_l), of "here is an object"
    deltas: list[Tensor]  # L x (B, N_l, 4), from the anchor to the object
    anchors: list[Tensor]  # L x (N_l, 4)


class Proposals(NamedTuple):
    """The regions of one image that the second stage looks at, best first."""

    boxes_xyxy_px: Tensor  # (n, 4)
    scores: Tensor  # (n,)


class Sampled(NamedTuple):
    """The candidates of one image that the losses are computed on, as indices."""

    positive: Tensor  # (P,) int64
    negative: Tensor  # (n,) int64
    avg_factor: int  # this image's share of what the losses are divided by


class RoITargets(NamedTuple):
    """The sampled regions and what the second stage should say about them."""

    boxes_xyxy_px: Tensor  # (R, 4)
    labels: Tensor  # (R,) int64, K = background
    gt_boxes_xyxy_px: Tensor  # (P, 4), of the regions that are not background, in their order


class RoIPredictions(NamedTuple):
    """What the second stage says about every region."""

    logits: Tensor  # (R, K + 1), the last being background
    deltas: Tensor  # (R, 4 * K), or (R, 4) if class-agnostic
