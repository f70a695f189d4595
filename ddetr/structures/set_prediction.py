"""Records passed between the stages of a set predictor.

Shapes: B batch size, S tokens of all levels, L feature levels, Q queries, C channels, K classes, N decoder layers,
G ground-truth boxes of one image, P matched pairs.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

NOTHING: Mapping[str, Tensor] = MappingProxyType({})
NO_OBJECT = -1  # label of a query without an object


class FlatFeatures(NamedTuple):
    """Feature pyramid flattened to one token sequence, level by level in row-major order."""

    tokens: Tensor  # (B, S, C)
    pos_embed: Tensor  # (B, S, C), level embedding included
    pad_mask: Tensor  # (B, S) bool, True = padding
    spatial_shapes: Tensor  # (L, 2) int64, (h, w) of each level
    level_start_index: Tensor  # (L,) int64, first token of each level
    valid_ratios: Tensor  # (B, L, 2), (w, h): unpadded fraction of each level's width and height
    level_sizes_hw: tuple[tuple[int, int], ...]  # `spatial_shapes` as Python ints; symbolic during export


class FlatMap(NamedTuple):
    """Feature map flattened to a token sequence in row-major order."""

    tokens: Tensor  # (B, S, C)
    pos_embed: Tensor  # (B, S, C)
    pad_mask: Tensor  # (B, S) bool, True = padding


class Matching(NamedTuple):
    """Matched query and ground-truth pairs of one image."""

    query_index: Tensor  # (P,) int64, within the query group
    target_index: Tensor  # (P,) int64


class QueryGroup(NamedTuple):
    """Decoder queries that are matched and trained as one set."""

    queries: slice  # position among the decoder queries
    name: str = ''  # prefix of its losses; empty for the group used for detection
    matches: tuple[Matching, ...] | None = (
        None  # fixed pairs, one entry per image; None: the assigner matches each layer
    )
    repeats: int = 1  # number of queries matched to each object
    loss_weight: float = 1.0
    per_object: int | None = None  # number of fixed pairs per object, if constant


class EncoderProposals(NamedTuple):
    """Encoder predictions with their own losses."""

    cls_logits: Tensor  # (B, S or Q, K)
    boxes_cxcywh_norm: Tensor  # (B, S or Q, 4)
    by_class: bool  # trained with class labels; False: class-agnostic, class 0 is any object


class DecoderInput(NamedTuple):
    """Initial decoder queries and reference points."""

    content: Tensor  # (B, Q, C)
    position: Tensor | None  # (B, Q, C); None: each decoder layer computes it from its reference points
    reference_norm: Tensor  # (B, Q, 2) points or (B, Q, 4) boxes, relative to the unpadded image
    groups: tuple[QueryGroup, ...]  # the first one is used for detection
    proposals: EncoderProposals | None = None
    self_attn_mask: Tensor | None = None  # (Q, Q) bool, True: query i does not attend to query j


class DecoderStates(NamedTuple):
    """Output of all decoder layers."""

    hidden: Tensor  # (N, B, Q, C)
    boxes_cxcywh_norm: Tensor  # (N, B, Q, 4)


class SetPredictions(NamedTuple):
    """Predictions of all decoder layers. Detections come from the last layer."""

    cls_logits: Tensor  # (N, B, Q, K); K + 1 for softmax heads, last class: "no object"
    boxes_cxcywh_norm: Tensor  # (N, B, Q, 4), relative to the unpadded image
    groups: tuple[QueryGroup, ...] = (QueryGroup(slice(None)),)
    proposals: EncoderProposals | None = None
    extras: Mapping[str, Tensor] = (
        NOTHING  # (N, B, Q, ...) each: inputs of additional loss terms, such as masks
    )


class SetTargets(NamedTuple):
    """Ground truth of one image in the format of the set losses."""

    labels: Tensor  # (G,) int64
    boxes_cxcywh_norm: Tensor  # (G, 4), relative to the unpadded image


class Matched(NamedTuple):
    """Input of a loss term: one query group in one decoder layer, with its matched pairs."""

    cls_logits: Tensor  # (B, Q, K)
    labels: Tensor  # (B, Q) int64, `NO_OBJECT` for queries without an object
    image_index: Tensor  # (P,) int64
    query_index: Tensor  # (P,) int64
    pred_boxes_cxcywh_norm: Tensor  # (P, 4)
    true_boxes_cxcywh_norm: Tensor  # (P, 4)
    pred_boxes_xyxy_px: Tensor  # (P, 4), the same in pixels of the unpadded image
    true_boxes_xyxy_px: Tensor  # (P, 4)
    num_pairs: int  # P of the effective batch: all processes, all accumulated batches
    num_queries: int  # B * Q of the effective batch
    num_parts: int  # number of batches in the effective batch; their gradients are averaged
    avg_factor: float  # divisor for sums over these pairs: max(num_pairs, 1) / num_parts
    extras: Mapping[str, Tensor]  # (B, Q, ...) each

    def iou(self) -> Tensor:
        """IoU (P,) of each matched pair, without gradient."""
        pred, true = self.pred_boxes_xyxy_px.detach(), self.true_boxes_xyxy_px
        sides = torch.min(pred[:, 2:], true[:, 2:]) - torch.max(pred[:, :2], true[:, :2])
        overlap = sides.clamp(min=0).prod(-1)
        union = sum((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (pred, true)) - overlap
        return overlap / union.clamp(min=1e-6)


def separate_groups(groups: tuple[QueryGroup, ...], device: torch.device) -> Tensor:
    """Self-attention mask (Q, Q) bool that hides each group from all others; True = masked."""
    sizes = [g.queries.stop - g.queries.start for g in groups]
    group = torch.cat([torch.full((size,), i, device=device) for i, size in enumerate(sizes)])  # (Q,)
    return group[:, None] != group
