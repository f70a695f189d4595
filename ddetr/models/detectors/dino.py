"""DINO (Zhang et al., "DINO: DETR with Improved DeNoising Anchor Boxes for End-to-End Object Detection", 2022)."""

from typing import Any

import torch
from torch import Tensor, nn

from ddetr.models.heads import DeformableDETRHead
from ddetr.models.layers import (
    DeformableDetrTransformerDecoder,
    DeformableDetrTransformerEncoder,
    SinePositionalEncoding,
)
from ddetr.models.layers.deformable_transformer import flatten_levels, token_anchors
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
)
from ddetr.utils.errors import ConfigError

from .base_detector import BaseDetector, build_backbone_and_neck
from .dino_denoising import ContrastiveDenoising, DenoisingQueries
from .dino_weights import DINO_WEIGHTS


@MODELS.register_module()
class DINOHead(DeformableDETRHead):
    """Deformable DETR head with the loss weights and inverse-sigmoid epsilon of the original DINO code."""

    LOSSES = {**DeformableDETRHead.LOSSES, 'loss_cls': {'type': 'FocalLoss', 'loss_weight': 1.0}}

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{'eps': 1e-3, **kwargs})


@MODELS.register_module()
class DINO(BaseDetector):
    """DINO: a two-stage deformable transformer with denoising training.

    Args:
        backbone, neck, bbox_head: Configs of registered components. The neck provides the feature levels.
        encoder, decoder, positional_encoding: Keyword arguments of `DeformableDetrTransformerEncoder`,
            `DeformableDetrTransformerDecoder` and `SinePositionalEncoding`.
        num_queries: Number of matching queries, Q.
        num_feature_levels: Number of feature levels, L.
        with_box_refine, as_two_stage: Accepted for compatibility with MMDetection configs; must be True.
        proposal_size: See `DeformableDETR`.
        dn_cfg: Keyword arguments of `ContrastiveDenoising`; None trains without denoising.
        train_cfg: `dict(assigner=...)`.
        test_cfg: `dict(max_per_img=...)`.
        data_preprocessor: Config of `DetDataPreprocessor`.

    Raises:
        ConfigError: `with_box_refine` or `as_two_stage` is False. In `forward`: the number of neck levels differs
            from `num_feature_levels`, or there are more queries than tokens.
    """

    weight_family = DINO_WEIGHTS
    detects_any_batch = True

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        encoder: dict,
        decoder: dict,
        bbox_head: dict,
        positional_encoding: dict,
        num_queries: int = 900,
        num_feature_levels: int = 4,
        with_box_refine: bool = True,
        as_two_stage: bool = True,
        proposal_size: float = 0.05,
        dn_cfg: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        for key, value in (('as_two_stage', as_two_stage), ('with_box_refine', with_box_refine)):
            if not value:
                raise ConfigError(f'model.{key}=False is not supported by DINO: set {key}=True.')
        self.num_queries = num_queries
        self.proposal_size = proposal_size
        self.backbone, self.neck = build_backbone_and_neck(backbone, neck)
        self.positional_encoding = SinePositionalEncoding(**positional_encoding)
        self.encoder = DeformableDetrTransformerEncoder(**encoder, num_levels=num_feature_levels)
        self.decoder = DeformableDetrTransformerDecoder(
            **{**decoder, 'post_norm_cfg': {'type': 'LN'}},
            num_levels=num_feature_levels,
            refine=True,
            look_forward_twice=True,
            position_from_reference=True,
        )
        self.bbox_head = MODELS.build(
            {
                **bbox_head,
                'train_cfg': train_cfg,
                'test_cfg': test_cfg,
                'share_pred_layer': False,
                'num_pred_layer': len(self.decoder.layers) + 1,
                'as_two_stage': True,
            }
        )
        channels = 2 * self.positional_encoding.num_feats
        self.level_embed = nn.Parameter(torch.randn(num_feature_levels, channels))
        self.memory_trans_fc = nn.Linear(channels, channels)
        nn.init.xavier_uniform_(self.memory_trans_fc.weight)
        self.memory_trans_norm = nn.LayerNorm(channels)
        self.query_embedding = nn.Embedding(num_queries, channels)
        self.dn_query_generator = None
        if dn_cfg is not None:
            self.dn_query_generator = ContrastiveDenoising(self.num_classes, channels, **dn_cfg)

    def loss(
        self, batch: ImageBatch, samples: Samples, denoising: DenoisingQueries | None = None
    ) -> dict[str, Tensor]:
        """See `BaseDetector`; the keys are those of `SetCriterion`, with `dn_` for the denoising queries.

        Args:
            batch: Images and padding.
            samples: Their ground truth.
            denoising: Predefined noised ground truth, for tests and comparisons; None draws new noise.
        """
        if denoising is None and self.dn_query_generator is not None:
            denoising = self.dn_query_generator(samples)
        elif self.dn_query_generator is None and denoising is not None:
            raise ValueError('denoising queries were passed, but the model was built without dn_cfg')
        return self.bbox_head.loss(self.predict_sets(batch, denoising), samples)

    def predict(self, batch: ImageBatch, samples: Samples) -> Samples:
        """See `BaseDetector`."""
        return self.bbox_head.predict(self.tensor(batch), samples)

    def detect(self, batch: ImageBatch) -> Detections:
        """See `BaseDetector`."""
        return self.bbox_head.detect(self.tensor(batch), batch)

    def tensor(self, batch: ImageBatch) -> SetPredictions:
        """See `BaseDetector`."""
        return self.predict_sets(batch, None)

    def predict_sets(self, batch: ImageBatch, denoising: DenoisingQueries | None) -> SetPredictions:
        """Full forward pass, from images to the predictions of all decoder layers."""
        feats = self.extract_feat(batch.images)  # L x (B, C, H_l, W_l)
        flat = flatten_levels(feats, batch.pad_mask, self.positional_encoding, self.level_embed)
        memory = self.encoder(flat)  # (B, S, C)
        init = self.select_queries(memory, flat)
        if denoising is not None and self.dn_query_generator is not None:
            init = self.dn_query_generator.append(init, denoising, self.bbox_head.eps)
        states = self.decoder(init, memory, flat, self.bbox_head.predict_boxes)
        return self.bbox_head(states, init)

    def select_queries(self, memory: Tensor, flat: FlatFeatures) -> DecoderInput:
        """Mixed query selection (section 3.4): reference boxes from the top proposals, learned content by rank."""
        anchors, unusable = token_anchors(flat, self.proposal_size)  # (B, S, 4) logits, (B, S)
        kept = self.memory_trans_norm(self.memory_trans_fc(memory.masked_fill(unusable[..., None], 0.0)))
        logits, boxes = self.bbox_head.predict_proposals(kept, anchors)  # (B, S, K), (B, S, 4)
        top = self.choose_tokens(logits)[..., None]  # (B, Q, 1)
        logits, boxes = (t.gather(1, top.expand(-1, -1, t.shape[-1])) for t in (logits, boxes))
        content = self.query_embedding.weight.expand(memory.shape[0], -1, -1).to(memory.dtype)  # (B, Q, C)
        groups = (QueryGroup(slice(0, self.num_queries)),)
        return DecoderInput(
            content, None, boxes.detach(), groups, EncoderProposals(logits, boxes, by_class=True)
        )

    def choose_tokens(self, cls_logits: Tensor) -> Tensor:
        """Indices (B, Q) of the tokens with the highest class logit, best first, from `cls_logits` (B, S, K)."""
        if self.num_queries > cls_logits.shape[1]:
            raise ConfigError(
                f'num_queries={self.num_queries} exceeds the {cls_logits.shape[1]} tokens of these images: lower '
                'num_queries or use larger images'
            )
        return cls_logits.amax(-1).topk(self.num_queries, dim=1).indices
