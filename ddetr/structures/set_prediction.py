"""The typed records that flow between the parts of the DETR family.

Shapes: B batch, S tokens of all levels together, L feature levels, Q queries, C channels, K classes, N decoder
layers, G ground-truth boxes of one image, P matched pairs.
"""

from typing import NamedTuple

from torch import Tensor


class FlatFeatures(NamedTuple):
    """A feature pyramid laid out as one sequence of tokens, level after level, row after row."""

    tokens: Tensor  # (B, S, C)
    pos_embed: Tensor  # (B, S, C), level embedding included
    pad_mask: Tensor  # (B, S) bool, True = padding
    spatial_shapes: Tensor  # (L, 2) int64, (h, w) of each level
    level_start_index: Tensor  # (L,) int64, first token of each level
    valid_ratios: Tensor  # (B, L, 2), (w, h): unpadded part of each level's sides


class FlatMap(NamedTuple):
    """One feature map laid out as a sequence of tokens, row after row."""

    tokens: Tensor  # (B, S, C)
    pos_embed: Tensor  # (B, S, C)
    pad_mask: Tensor  # (B, S) bool, True = padding


class EncoderProposals(NamedTuple):
    """What the two-stage variant predicts at every token of the encoder's memory."""

    cls_logits: Tensor  # (B, S, K); only class 0, "an object", is trained
    boxes_cxcywh_norm: Tensor  # (B, S, 4)


class QueryInit(NamedTuple):
    """What the decoder starts from."""

    query: Tensor  # (B, Q, C)
    query_pos: Tensor  # (B, Q, C)
    reference_norm: Tensor  # (B, Q, 2) points or (B, Q, 4) boxes, relative to the unpadded image
    proposals: EncoderProposals | None


class DecoderStates(NamedTuple):
    """What every decoder layer puts out."""

    hidden: Tensor  # (N, B, Q, C)
    boxes_cxcywh_norm: Tensor  # (N, B, Q, 4)


class SetPredictions(NamedTuple):
    """The predicted sets of all decoder layers, the last one being the result."""

    cls_logits: Tensor  # (N, B, Q, K), with softmax heads K + 1, the last being "no object"
    boxes_cxcywh_norm: Tensor  # (N, B, Q, 4), relative to the unpadded image
    proposals: EncoderProposals | None = None


class SetTargets(NamedTuple):
    """The ground truth of one image, as the set losses see it."""

    labels: Tensor  # (G,) int64
    boxes_cxcywh_norm: Tensor  # (G, 4), relative to the unpadded image


class Matching(NamedTuple):
    """Pairs of a query and the ground-truth box it has to predict, in one image."""

    query_index: Tensor  # (P,) int64
    target_index: Tensor  # (P,) int64
