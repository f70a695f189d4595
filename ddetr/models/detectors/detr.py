"""DETR (Carion et al., "End-to-End Object Detection with Transformers").

The DETR variants in the Deformable DETR paper differ in the backbone (DC5: last stage dilated instead of strided)
and, for DETR-DC5+, in the number of queries and the classification loss.
"""

from torch import Tensor, nn

from ddetr.models.layers import DetrTransformerDecoder, DetrTransformerEncoder, SinePositionalEncoding
from ddetr.models.layers.positional_encoding import pad_mask_on
from ddetr.registry import MODELS
from ddetr.structures import Detections, FlatMap, ImageBatch, Samples, SetPredictions

from .base_detector import BaseDetector, build_backbone_and_neck
from .detr_weights import DETR as DETR_WEIGHTS


@MODELS.register_module()
class DETR(BaseDetector):
    """DETR: a transformer on the last feature map of a backbone.

    Args:
        backbone, neck, bbox_head: Configs of registered components. The neck provides one feature map.
        encoder, decoder, positional_encoding: Keyword arguments of `DetrTransformerEncoder`,
            `DetrTransformerDecoder` and `SinePositionalEncoding`.
        num_queries: Number of object queries, Q.
        train_cfg: `dict(assigner=...)`.
        test_cfg: `dict(max_per_img=...)`.
        data_preprocessor: Config of `DetDataPreprocessor`.
    """

    weight_family = DETR_WEIGHTS
    detects_any_batch = True

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        encoder: dict,
        decoder: dict,
        bbox_head: dict,
        positional_encoding: dict,
        num_queries: int = 100,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        self.backbone, self.neck = build_backbone_and_neck(backbone, neck)
        self.positional_encoding = SinePositionalEncoding(**positional_encoding)
        self.encoder = DetrTransformerEncoder(**encoder)
        self.decoder = DetrTransformerDecoder(**decoder)
        self.bbox_head = MODELS.build({**bbox_head, 'train_cfg': train_cfg, 'test_cfg': test_cfg})
        self.query_embedding = nn.Embedding(num_queries, 2 * self.positional_encoding.num_feats)

    def loss(self, batch: ImageBatch, samples: Samples) -> dict[str, Tensor]:
        """See `BaseDetector`; the keys are those of `SetCriterion`."""
        return self.bbox_head.loss(self.tensor(batch), samples)

    def predict(self, batch: ImageBatch, samples: Samples) -> Samples:
        """See `BaseDetector`."""
        return self.bbox_head.predict(self.tensor(batch), samples)

    def detect(self, batch: ImageBatch) -> Detections:
        """See `BaseDetector`."""
        return self.bbox_head.detect(self.tensor(batch), batch)

    def tensor(self, batch: ImageBatch) -> SetPredictions:
        """Full forward pass, from images to the predictions of all decoder layers."""
        feats = self.extract_feat(batch.images)  # 1 x (B, C, H_5, W_5)
        flat = self.flatten(feats, batch.pad_mask)
        memory = self.encoder(flat)  # (B, S, C)
        query_pos = self.query_embedding.weight.expand(memory.shape[0], -1, -1)  # (B, Q, C)
        hidden = self.decoder(query_pos, memory, flat)  # (N, B, Q, C)
        return self.bbox_head(hidden)

    def flatten(self, feats: tuple[Tensor, ...], pad_mask: Tensor) -> FlatMap:
        """Flatten the feature map to tokens with positions and padding mask. Raise ValueError for several maps."""
        if len(feats) != 1:
            raise ValueError(
                f'DETR expects one feature map, but the neck returns {len(feats)}: set neck.num_outs=1'
            )
        (feat,) = feats  # (B, C, H_5, W_5)
        mask = pad_mask_on(feat, pad_mask)  # (B, H_5, W_5)
        pos = self.positional_encoding(mask).to(feat.dtype)  # (B, C, H_5, W_5)
        tokens, positions = (t.flatten(2).transpose(1, 2) for t in (feat, pos))  # (B, S, C) each
        return FlatMap(tokens, positions, mask.flatten(1))
