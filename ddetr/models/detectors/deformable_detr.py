"""Deformable DETR (Zhu et al., "Deformable DETR: Deformable Transformers for End-to-End Object Detection").

The five systems of the paper differ in three keys: `num_feature_levels`, `with_box_refine`, `as_two_stage`.
"""

import torch
from mmengine.model import bias_init_with_prob
from torch import Tensor, nn

from ddetr.models.layers import (
    DeformableDetrTransformerDecoder,
    DeformableDetrTransformerEncoder,
    SinePositionalEncoding,
)
from ddetr.models.layers.deformable_transformer import token_centres
from ddetr.models.layers.positional_encoding import encode_boxes, pad_mask_of, pad_mask_on
from ddetr.registry import MODELS
from ddetr.structures import DetDataSample, FlatFeatures, QueryInit, SetPredictions

from .base_detector import BaseDetector
from .deformable_detr_weights import DEFORMABLE_DETR

Samples = list[DetDataSample]


@MODELS.register_module()
class DeformableDETR(BaseDetector):
    """The multi-scale deformable transformer on a convolutional backbone.

    Args:
        backbone, neck, bbox_head: configs of registered components; the neck gives the feature levels.
        encoder, decoder, positional_encoding: keywords of `DeformableDetrTransformerEncoder`,
            `DeformableDetrTransformerDecoder`, `SinePositionalEncoding`.
        num_queries: Q.
        num_feature_levels: L.
        with_box_refine: each decoder layer refines the boxes of the one before (section 4.2).
        as_two_stage: the queries are the encoder's best proposals instead of learned ones (section 4.2).
        mixed_query_selection: in two stages, add a learned embedding to the content of the best, the second best, ...
            proposal. Proposals of the same object are nearly the same query otherwise, and it takes long training to
            tell the best from its duplicates (after DINO, Zhang et al., 2022, section 3.4). Not in the paper.
        train_cfg: `dict(assigner=...)`.
        test_cfg: `dict(max_per_img=...)`.
        data_preprocessor: config of `DetDataPreprocessor`.

    Raises:
        ValueError: a neck that does not give `num_feature_levels` levels, or more queries than tokens.
    """

    weight_family = DEFORMABLE_DETR

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
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.num_queries = num_queries
        self.num_feature_levels = num_feature_levels
        self.with_box_refine = with_box_refine
        self.as_two_stage = as_two_stage
        self.mixed_query_selection = mixed_query_selection
        self.backbone = MODELS.build(backbone)
        self.neck = MODELS.build(neck)
        self.positional_encoding = SinePositionalEncoding(**positional_encoding)
        self.encoder = DeformableDetrTransformerEncoder(**_with_levels(encoder, num_feature_levels))
        self.decoder = DeformableDetrTransformerDecoder(**_with_levels(decoder, num_feature_levels))
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

    def _build_query_parts(self) -> None:
        """What the queries come from: learned embeddings, or projections of the encoder's proposals."""
        channels = self.embed_dims
        if self.as_two_stage:
            self.memory_trans_fc = nn.Linear(channels, channels)
            self.memory_trans_norm = nn.LayerNorm(channels)
            self.pos_trans_fc = nn.Linear(2 * channels, 2 * channels)
            self.pos_trans_norm = nn.LayerNorm(2 * channels)
            projections = [self.memory_trans_fc, self.pos_trans_fc]
            if self.mixed_query_selection:
                self.query_embedding = nn.Embedding(self.num_queries, channels)
        else:
            self.query_embedding = nn.Embedding(self.num_queries, 2 * channels)
            self.reference_points_fc = nn.Linear(channels, 2)
            projections = [self.reference_points_fc]
        for projection in projections:
            nn.init.xavier_uniform_(projection.weight)
        if not self.as_two_stage:
            nn.init.zeros_(self.reference_points_fc.bias)

    @property
    def num_classes(self) -> int:
        """See `BaseDetector`."""
        return self.bbox_head.num_classes

    def reset_classes(self, num_classes: int) -> list[str]:
        """See `BaseDetector`."""
        head = self.bbox_head
        head.num_classes = num_classes
        layers: dict[nn.Module, nn.Linear] = {}  # shared ones stay shared
        for branch in head.cls_branches:
            fresh = layers.setdefault(branch, nn.Linear(branch.in_features, num_classes))
            nn.init.constant_(fresh.bias, bias_init_with_prob(0.01))
        head.cls_branches = nn.ModuleList(layers[branch] for branch in head.cls_branches)
        return [name for name in self.state_dict() if name.startswith('bbox_head.cls_branches.')]

    def loss(self, images: Tensor, samples: Samples) -> dict[str, Tensor]:
        """See `BaseDetector`; the keys are those of `DeformableDETRHead.loss`."""
        return self.bbox_head.loss(self.tensor(images, samples), samples)

    def predict(self, images: Tensor, samples: Samples) -> Samples:
        """See `BaseDetector`."""
        return self.bbox_head.predict(self.tensor(images, samples), samples)

    def tensor(self, images: Tensor, samples: Samples) -> SetPredictions:
        """The detector's whole way from images (B, 3, H, W) to the predicted sets of all decoder layers."""
        feats = self.extract_feat(images)  # L x (B, C, H_l, W_l)
        flat = self.flatten(feats, samples)
        memory = self.encoder(flat)  # (B, S, C)
        init = self.init_queries(memory, flat)
        states = self.decoder(init, memory, flat, self.bbox_head.predict_boxes, self.with_box_refine)
        return self.bbox_head(states, init.proposals)

    def extract_feat(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> L x (B, C, H_l, W_l)."""
        return self.neck(self.backbone(images))

    def flatten(self, feats: tuple[Tensor, ...], samples: Samples) -> FlatFeatures:
        """Lay the levels out as tokens, with their positions, level embeddings and padding."""
        if len(feats) != self.num_feature_levels:
            raise ValueError(
                f'the neck gives {len(feats)} levels, but num_feature_levels={self.num_feature_levels}'
            )
        image_mask = pad_mask_of(samples, feats[0].device)  # (B, H, W)
        tokens, positions, masks, ratios = [], [], [], []
        for level, feat in enumerate(feats):
            mask = pad_mask_on(feat, image_mask)  # (B, H_l, W_l)
            pos = self.positional_encoding(mask).to(feat.dtype)  # (B, C, H_l, W_l)
            tokens.append(feat.flatten(2).transpose(1, 2))
            positions.append(pos.flatten(2).transpose(1, 2) + self.level_embed[level])
            masks.append(mask.flatten(1))
            ratios.append(valid_ratio(mask))
        shapes = torch.tensor([feat.shape[-2:] for feat in feats], device=feats[0].device)  # (L, 2)
        starts = torch.cat([shapes.new_zeros(1), shapes.prod(1).cumsum(0)[:-1]])  # (L,)
        return FlatFeatures(
            torch.cat(tokens, 1),
            torch.cat(positions, 1),
            torch.cat(masks, 1),
            shapes,
            starts,
            torch.stack(ratios, 1),
        )

    def init_queries(self, memory: Tensor, flat: FlatFeatures) -> QueryInit:
        """Learned queries with learned reference points, or the encoder's best proposals."""
        if self.as_two_stage:
            return self._queries_from_proposals(memory, flat)
        batch = memory.shape[0]
        query_pos, query = self.query_embedding.weight.expand(batch, -1, -1).chunk(2, -1)  # (B, Q, C) each
        reference = self.reference_points_fc(query_pos).float().sigmoid()  # (B, Q, 2)
        return QueryInit(query, query_pos, reference, None)

    def _queries_from_proposals(self, memory: Tensor, flat: FlatFeatures) -> QueryInit:
        """Section 4.2, "Two-Stage Deformable DETR", and appendix A.4."""
        if self.num_queries > memory.shape[1]:
            raise ValueError(
                f'num_queries={self.num_queries} exceeds the {memory.shape[1]} tokens of these images: lower '
                'num_queries or use larger images'
            )
        anchors, unusable = self._anchors(flat)  # (B, S, 4) logits, (B, S)
        kept = memory.masked_fill(unusable[..., None], 0.0)
        proposals = self.bbox_head.predict_proposals(
            self.memory_trans_norm(self.memory_trans_fc(kept)), anchors
        )
        top = proposals.cls_logits[..., 0].topk(self.num_queries, dim=1).indices  # (B, Q)
        reference = proposals.boxes_cxcywh_norm.gather(1, top[..., None].expand(-1, -1, 4)).detach()
        encoded = encode_boxes(reference, self.embed_dims // 2).to(memory.dtype)  # (B, Q, 2C)
        query_pos, query = self.pos_trans_norm(self.pos_trans_fc(encoded)).chunk(2, -1)  # (B, Q, C) each
        if self.mixed_query_selection:
            query = query + self.query_embedding.weight
        return QueryInit(query, query_pos, reference, proposals)

    @staticmethod
    def _anchors(flat: FlatFeatures) -> tuple[Tensor, Tensor]:
        """A box around each token, of 0.05 * 2^level of the image, in logit space: (B, S, 4) and where unusable.

        Tokens under padding or within 1% of the image's border get an infinite logit and are unusable.
        """
        centres = token_centres(flat)  # (B, S, 2)
        tokens_of_level = flat.spatial_shapes.prod(1)
        level = torch.arange(len(tokens_of_level), device=centres.device).repeat_interleave(tokens_of_level)
        sides = (0.05 * 2.0**level)[None, :, None].expand_as(centres)
        anchors = torch.cat([centres, sides], -1)
        inside = ((anchors > 0.01) & (anchors < 0.99)).all(-1)  # (B, S)
        unusable = flat.pad_mask | ~inside
        logits = (anchors / (1 - anchors)).log()
        return logits.masked_fill(unusable[..., None], torch.inf), unusable


def valid_ratio(pad_mask: Tensor) -> Tensor:
    """(B, H, W) -> (B, 2), the unpadded part of the width and of the height."""
    height, width = pad_mask.shape[1:]
    valid = (~pad_mask).float()
    return torch.stack([valid[:, 0, :].sum(1) / width, valid[:, :, 0].sum(1) / height], -1)


def _with_levels(transformer: dict, num_levels: int) -> dict:
    """`transformer`'s keywords, with `num_levels` for the deformable attentions that do not say theirs.

    Raises:
        ValueError: a `num_levels` that differs from the detector's.
    """
    layer = dict(transformer['layer_cfg'])
    deformable = 'cross_attn_cfg' if 'cross_attn_cfg' in layer else 'self_attn_cfg'
    said = layer[deformable].get('num_levels', num_levels)
    if said != num_levels:
        raise ValueError(f'{deformable}.num_levels={said}, but num_feature_levels={num_levels}')
    layer[deformable] = {**layer[deformable], 'num_levels': num_levels}
    return {**transformer, 'layer_cfg': layer}
