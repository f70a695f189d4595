"""Deformable DETR (Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection").

The five variants in the paper differ in `num_feature_levels`, `with_box_refine` and `as_two_stage`. Later techniques
are options too: `mixed_query_selection`, `look_forward_twice`, `class_aware_proposals`, `distinct_proposals`,
`num_one2many_queries`.
"""

import torch
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from ddetr.models.layers import (
    DeformableDetrTransformerDecoder,
    DeformableDetrTransformerEncoder,
    SinePositionalEncoding,
)
from ddetr.models.layers.deformable_transformer import flatten_levels, token_anchors
from ddetr.models.layers.positional_encoding import encode_boxes
from ddetr.registry import MODELS
from ddetr.structures import (
    DecoderInput,
    Detections,
    EncoderProposals,
    FlatFeatures,
    ImageBatch,
    QueryGroup,
    Samples,
    SetPredictions,
    separate_groups,
)
from ddetr.utils.errors import ConfigError

from .base_detector import BaseDetector, build_backbone_and_neck
from .deformable_detr_weights import DEFORMABLE_DETR
from .dino_denoising import ContrastiveDenoising, DenoisingQueries


@MODELS.register_module()
class DeformableDETR(BaseDetector):
    """Deformable DETR: a multi-scale deformable transformer on top of a backbone and neck.

    Args:
        backbone, neck, bbox_head: Configs of registered components. The neck provides the feature levels.
        encoder, decoder, positional_encoding: Keyword arguments of `DeformableDetrTransformerEncoder`,
            `DeformableDetrTransformerDecoder` and `SinePositionalEncoding`.
        num_queries: Number of object queries, Q.
        num_feature_levels: Number of feature levels, L.
        with_box_refine: Whether each decoder layer refines the boxes of the previous one (section 4.2).
        as_two_stage: Whether queries come from the top encoder proposals instead of learned embeddings (section 4.2).
        mixed_query_selection: Whether, in two-stage mode, proposals initialise only the query positions while the
            content is a learned embedding indexed by proposal rank (DINO, Zhang et al., 2022, section 3.4).
        look_forward_twice: Whether a layer also receives gradients from the next layer's boxes (DINO, section 3.5).
        class_aware_proposals: Whether, in two-stage mode, proposals are ranked by their best class and the selected
            ones are trained with class labels, as in DINO. By default class 0 stands for any object.
        proposal_size: Side of the anchor boxes of the finest level's proposals, relative to the image; doubles with
            each level.
        distinct_proposals: IoU threshold: in two-stage mode, proposals that overlap a higher-ranked one by more are
            selected last, so that queries start from distinct boxes. Distinct query selection of DDQ (Zhang et al.,
            2023), with the parallel suppression of Fast NMS (Bolya et al., "YOLACT", section 4.2). None selects by
            rank alone.
        num_one2many_queries: Number of additional training queries, for which each object is repeated
            `one2many_repeats` times (H-DETR, Jia et al., 2023, section 4.1).
        one2many_repeats: K in the H-DETR paper.
        one2many_weight: Weight of the one-to-many losses, lambda in the H-DETR paper.
        dn_cfg: Keyword arguments of `ContrastiveDenoising`, for denoising training in two-stage mode (DINO,
            section 3.3); None disables it.
        train_cfg: `dict(assigner=...)`.
        test_cfg: `dict(max_per_img=...)`.
        data_preprocessor: Config of `DetDataPreprocessor`.

    Raises:
        ConfigError: A two-stage option without `as_two_stage`, `look_forward_twice` without `with_box_refine`, or
            `distinct_proposals` outside 0 to 1. In `forward`: the number of neck levels differs from
            `num_feature_levels`, or there are more queries than tokens.
    """

    weight_family = DEFORMABLE_DETR
    detects_any_batch = True

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        encoder: dict,
        decoder: dict,
        bbox_head: dict,
        positional_encoding: dict,
        num_queries: int = 300,
        num_feature_levels: int = 4,
        with_box_refine: bool = False,
        as_two_stage: bool = False,
        mixed_query_selection: bool = False,
        look_forward_twice: bool = False,
        class_aware_proposals: bool = False,
        proposal_size: float = 0.05,
        distinct_proposals: float | None = None,
        num_one2many_queries: int = 0,
        one2many_repeats: int = 6,
        one2many_weight: float = 1.0,
        dn_cfg: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        needs_proposals = {
            'mixed_query_selection': mixed_query_selection,
            'class_aware_proposals': class_aware_proposals,
            'distinct_proposals': distinct_proposals,
            'dn_cfg': dn_cfg,
        }
        for key, value in needs_proposals.items():
            if value and not as_two_stage:
                raise ConfigError(f'model.{key}={value} needs encoder proposals: set as_two_stage=True.')
        if look_forward_twice and not with_box_refine:
            raise ConfigError('model.look_forward_twice=True needs box refinement: set with_box_refine=True.')
        if distinct_proposals is not None and not 0 <= distinct_proposals <= 1:
            raise ConfigError(
                f'model.distinct_proposals={distinct_proposals} must be an IoU from 0 to 1, or None.'
            )
        self.num_queries = num_queries
        self.with_box_refine = with_box_refine
        self.as_two_stage = as_two_stage
        self.mixed_query_selection = mixed_query_selection
        self.class_aware_proposals = class_aware_proposals
        self.proposal_size = proposal_size
        self.distinct_proposals = distinct_proposals
        self.groups: tuple[QueryGroup, ...] = (QueryGroup(slice(0, num_queries)),)
        if num_one2many_queries:
            extra = slice(num_queries, num_queries + num_one2many_queries)
            self.groups += (QueryGroup(extra, 'o2m_', None, one2many_repeats, one2many_weight),)
        self.backbone, self.neck = build_backbone_and_neck(backbone, neck)
        self.positional_encoding = SinePositionalEncoding(**positional_encoding)
        self.encoder = DeformableDetrTransformerEncoder(**encoder, num_levels=num_feature_levels)
        self.decoder = DeformableDetrTransformerDecoder(
            **decoder,
            num_levels=num_feature_levels,
            refine=with_box_refine,
            look_forward_twice=look_forward_twice,
        )
        self.bbox_head = MODELS.build(
            {
                **bbox_head,
                'train_cfg': train_cfg,
                'test_cfg': test_cfg,
                'share_pred_layer': not with_box_refine,
                'num_pred_layer': len(self.decoder.layers) + as_two_stage,
                'as_two_stage': as_two_stage,
            }
        )
        self.embed_dims = 2 * self.positional_encoding.num_feats
        self.level_embed = nn.Parameter(torch.randn(num_feature_levels, self.embed_dims))
        self._build_query_parts()
        self.dn_query_generator = None
        if dn_cfg is not None:
            self.dn_query_generator = ContrastiveDenoising(self.num_classes, self.embed_dims, **dn_cfg)

    def _build_query_parts(self) -> None:
        """Create the learned query embeddings or the projections of encoder proposals."""
        channels, num_queries = self.embed_dims, self.groups[-1].queries.stop
        if self.as_two_stage:
            self.memory_trans_fc = nn.Linear(channels, channels)
            self.memory_trans_norm = nn.LayerNorm(channels)
            self.pos_trans_fc = nn.Linear(2 * channels, 2 * channels)
            self.pos_trans_norm = nn.LayerNorm(2 * channels)
            projections = [self.memory_trans_fc, self.pos_trans_fc]
            if self.mixed_query_selection:
                self.query_embedding = nn.Embedding(num_queries, channels)
        else:
            self.query_embedding = nn.Embedding(num_queries, 2 * channels)
            self.reference_points_fc = nn.Linear(channels, 2)
            projections = [self.reference_points_fc]
        for projection in projections:
            nn.init.xavier_uniform_(projection.weight)
        if not self.as_two_stage:
            nn.init.zeros_(self.reference_points_fc.bias)

    def loss(self, batch: ImageBatch, samples: Samples) -> dict[str, Tensor]:
        """See `BaseDetector`; the keys are those of `SetCriterion`."""
        denoising = None if self.dn_query_generator is None else self.dn_query_generator(samples)
        return self.bbox_head.loss(self.predict_sets(batch, self.groups, denoising), samples)

    def predict(self, batch: ImageBatch, samples: Samples) -> Samples:
        """See `BaseDetector`."""
        return self.bbox_head.predict(self.tensor(batch), samples)

    def detect(self, batch: ImageBatch) -> Detections:
        """See `BaseDetector`."""
        return self.bbox_head.detect(self.tensor(batch), batch)

    def tensor(self, batch: ImageBatch) -> SetPredictions:
        """See `BaseDetector`."""
        return self.predict_sets(batch, self.groups[:1])

    def predict_sets(
        self, batch: ImageBatch, groups: tuple[QueryGroup, ...], denoising: DenoisingQueries | None = None
    ) -> SetPredictions:
        """Full forward pass, from images to the predictions of all decoder layers."""
        feats = self.extract_feat(batch.images)  # L x (B, C, H_l, W_l)
        flat = flatten_levels(feats, batch.pad_mask, self.positional_encoding, self.level_embed)
        memory = self.encoder(flat)  # (B, S, C)
        init = self.init_queries(memory, flat, groups)
        if denoising is not None and self.dn_query_generator is not None:
            init = self.dn_query_generator.append(
                init, denoising, self.bbox_head.eps, lambda boxes: self._encode(boxes, memory)[0]
            )
        states = self.decoder(init, memory, flat, self.bbox_head.predict_boxes)
        return self.bbox_head(states, init)

    def init_queries(
        self, memory: Tensor, flat: FlatFeatures, groups: tuple[QueryGroup, ...]
    ) -> DecoderInput:
        """Initial decoder queries and reference points, learned or from the top encoder proposals."""
        num_queries = groups[-1].queries.stop
        mask = separate_groups(groups, memory.device) if len(groups) > 1 else None
        if self.as_two_stage:
            return self._queries_from_proposals(memory, flat, num_queries)._replace(
                groups=groups, self_attn_mask=mask
            )
        embedding = self.query_embedding.weight[:num_queries].expand(memory.shape[0], -1, -1)
        position, content = embedding.chunk(2, -1)  # (B, Q, C) each
        reference = self.reference_points_fc(position).float().sigmoid()  # (B, Q, 2)
        return DecoderInput(content, position, reference, groups, None, mask)

    def _queries_from_proposals(self, memory: Tensor, flat: FlatFeatures, num_queries: int) -> DecoderInput:
        """Select queries from encoder proposals (section 4.2, "Two-Stage Deformable DETR", and appendix A.4)."""
        if num_queries > memory.shape[1]:
            raise ConfigError(
                f'num_queries={num_queries} exceeds the {memory.shape[1]} tokens of these images: lower '
                'num_queries (or num_one2many_queries) or use larger images'
            )
        anchors, unusable = token_anchors(flat, self.proposal_size)  # (B, S, 4) logits, (B, S)
        kept = memory.masked_fill(unusable[..., None], 0.0)
        logits, boxes = self.bbox_head.predict_proposals(
            self.memory_trans_norm(self.memory_trans_fc(kept)), anchors
        )  # (B, S, K), (B, S, 4)
        ranks = logits.amax(-1) if self.class_aware_proposals else logits[..., 0]  # (B, S)
        if self.distinct_proposals is None:
            top = ranks.topk(num_queries, dim=1).indices[..., None]  # (B, Q, 1)
        else:
            top = _distinct_first(ranks, boxes.detach(), num_queries, self.distinct_proposals)[..., None]
        reference = boxes.gather(1, top.expand(-1, -1, 4)).detach()
        proposals = EncoderProposals(logits, boxes, by_class=False)
        if self.class_aware_proposals:
            chosen = top[:, : self.num_queries]
            parts = [t.gather(1, chosen.expand(-1, -1, t.shape[-1])) for t in (logits, boxes)]
            proposals = EncoderProposals(parts[0], parts[1], by_class=True)
        position, content = self._encode(reference, memory)  # (B, Q, C) each
        if self.mixed_query_selection:
            content = self.query_embedding.weight[:num_queries].expand_as(content)
        return DecoderInput(content, position, reference, (), proposals)

    def _encode(self, boxes_cxcywh_norm: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """Encode boxes (B, Q, 4) as query position and content, (B, Q, C) each (appendix A.4)."""
        encoded = encode_boxes(boxes_cxcywh_norm, self.embed_dims // 2).to(memory.dtype)  # (B, Q, 2C)
        position, content = self.pos_trans_norm(self.pos_trans_fc(encoded)).chunk(2, -1)
        return position, content


def _distinct_first(ranks: Tensor, boxes_cxcywh_norm: Tensor, num_queries: int, max_iou: float) -> Tensor:
    """Indices (B, Q) of the best of S proposals by `ranks` (B, S), those that overlap a better one last."""
    most = 4 * num_queries
    candidates = ranks.topk(min(most, ranks.shape[1]), dim=1).indices  # (B, M)
    boxes = boxes_cxcywh_norm.gather(1, candidates[..., None].expand(-1, -1, 4))
    boxes = box_convert(boxes, 'cxcywh', 'xyxy')
    repeated = (box_iou(boxes, boxes) > max_iou).tril(-1).any(-1)  # (B, M)
    order = torch.arange(candidates.shape[1], device=ranks.device) + most * repeated
    return candidates.gather(1, order.topk(num_queries, dim=1, largest=False).indices)
