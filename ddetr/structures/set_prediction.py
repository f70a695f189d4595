"""Records that flow between the parts of a set predictor.

Shapes: B batch, S tokens of all levels together, L feature levels, Q queries, C channels, K classes, N decoder
layers, G ground-truth boxes of one image, P matched pairs.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

NOTHING: Mapping[str, Tensor] = MappingProxyType({})
NO_OBJECT = -1  # the label of a query without an object


class FlatFeatures(NamedTuple):
    """A feature pyramid laid out as one sequence of tokens, level after level, row after row."""

    tokens: Tensor  # (B, S, C)
    pos_embed: Tensor  # (B, S, C), level embedding included
    pad_mask: Tensor  # (B, S) bool, True = padding
    spatial_shapes: Tensor  # (L, 2) int64, (h, w) of each level
    level_start_index: Tensor  # (L,) int64, first token of each level
    valid_ratios: Tensor  # (B, L, 2), (w, h): unpadded part of each level's sides
    level_sizes_hw: tuple[tuple[int, int], ...]  # `spatial_shapes` as numbers; symbolic while exporting


class FlatMap(NamedTuple):
    """One feature map laid out as a sequence of tokens, row after row."""

    tokens: Tensor  # (B, S, C)
    pos_embed: Tensor  # (B, S, C)
    pad_mask: Tensor  # (B, S) bool, True = padding


class Matching(NamedTuple):
    """Pairs of a query and the ground-truth box it has to predict, in one image."""

    query_index: Tensor  # (P,) int64, within the queries' group
    target_index: Tensor  # (P,) int64


class QueryGroup(NamedTuple):
    """Decoder queries that are trained as one set, apart from the others."""

    queries: slice  # of all the decoder's queries
    name: str = ''  # prefix of its losses; the group that detects has none
    matches: tuple[Matching, ...] | None = None  # B fixed ones; None: the assigner matches every layer anew
    repeats: int = 1  # the assigner gives each object to so many queries
    loss_weight: float = 1.0
    per_object: int | None = None  # fixed pairs of each object, where all objects have as many


class EncoderProposals(NamedTuple):
    """Boxes predicted by the encoder, as far as they are trained."""

    cls_logits: Tensor  # (B, S or Q, K)
    boxes_cxcywh_norm: Tensor  # (B, S or Q, 4)
    by_class: bool  # trained with the objects' classes; False: class 0 stands for any object


class DecoderInput(NamedTuple):
    """Initial decoder queries and reference points."""

    content: Tensor  # (B, Q, C)
    position: Tensor | None  # (B, Q, C); None: each decoder layer derives it from its reference
    reference_norm: Tensor  # (B, Q, 2) points or (B, Q, 4) boxes, relative to the unpadded image
    groups: tuple[QueryGroup, ...]  # the first one detects
    proposals: EncoderProposals | None = None
    self_attn_mask: Tensor | None = None  # (Q, Q) bool, True: the row's query does not attend to the column's


class DecoderStates(NamedTuple):
    """Output of all decoder layers."""

    hidden: Tensor  # (N, B, Q, C)
    boxes_cxcywh_norm: Tensor  # (N, B, Q, 4)


class SetPredictions(NamedTuple):
    """The predicted sets of all decoder layers. Detections come from the last layer."""

    cls_logits: Tensor  # (N, B, Q, K), with softmax heads K + 1, the last being "no object"
    boxes_cxcywh_norm: Tensor  # (N, B, Q, 4), relative to the unpadded image
    groups: tuple[QueryGroup, ...] = (QueryGroup(slice(None)),)
    proposals: EncoderProposals | None = None
    extras: Mapping[str, Tensor] = NOTHING  # (N, B, Q, ...) each: inputs of further loss terms, such as masks


class SetTargets(NamedTuple):
    """The ground truth of one image, as the set losses see it."""

    labels: Tensor  # (G,) int64
    boxes_cxcywh_norm: Tensor  # (G, 4), relative to the unpadded image


class Matched(NamedTuple):
    """One group of queries in one decoder layer, with its pairs of query and object: the input of a loss term."""

    cls_logits: Tensor  # (B, Q, K)
    labels: Tensor  # (B, Q) int64, `NO_OBJECT` for queries without an object
    image_index: Tensor  # (P,) int64
    query_index: Tensor  # (P,) int64
    pred_boxes_cxcywh_norm: Tensor  # (P, 4)
    true_boxes_cxcywh_norm: Tensor  # (P, 4)
    pred_boxes_xyxy_px: Tensor  # (P, 4), the same in pixels of the unpadded image
    true_boxes_xyxy_px: Tensor  # (P, 4)
    num_pairs: int  # P in the whole effective batch: all processes, all accumulated batches
    num_queries: int  # B * Q in it
    num_parts: int  # batches that it is made of; the gradient is their mean
    avg_factor: float  # what a sum over these pairs is divided by: max(num_pairs, 1) / num_parts
    extras: Mapping[str, Tensor]  # (B, Q, ...) each

    def iou(self) -> Tensor:
        """IoU (P,) of each pair's boxes, without a gradient."""
        pred, true = self.pred_boxes_xyxy_px.detach(), self.true_boxes_xyxy_px
        sides = torch.min(pred[:, 2:], true[:, 2:]) - torch.max(pred[:, :2], true[:, :2])
        overlap = sides.clamp(min=0).prod(-1)
        union = sum((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (pred, true)) - overlap
        return overlap / union.clamp(min=1e-6)


def separate_groups(groups: tuple[QueryGroup, ...], device: torch.device) -> Tensor:
    """A self-attention mask (Q, Q) that hides every group from all others; True = hidden."""
    sizes = [g.queries.stop - g.queries.start for g in groups]
    group = torch.cat([torch.full((size,), i, device=device) for i, size in enumerate(sizes)])  # (Q,)
    return group[:, None] != group
