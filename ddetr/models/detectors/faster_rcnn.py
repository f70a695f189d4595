"""Faster R-CNN with a feature pyramid (Ren et al., 2015; Lin et al., 2017)."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ddetr.registry import MODELS
from ddetr.structures import AnchorPredictions, Detections, ImageBatch, Proposals, RoIPredictions, Samples
from ddetr.utils.errors import ConfigError

from .base_detector import BaseDetector, build_backbone_and_neck
from .faster_rcnn_weights import FASTER_RCNN


@MODELS.register_module()
class FasterRCNN(BaseDetector):
    """Faster R-CNN: proposals from anchors, then a class and a refined box for each proposal.

    Args:
        backbone, neck, rpn_head, roi_head: Configs of the components. The heads receive their sections of
            `train_cfg` and `test_cfg`.
        test_cfg: Dict with `rpn` and `rcnn`.
        train_cfg: Dict with `rpn`, `rcnn` and `rpn_proposal` (proposal selection in training; default: as in
            testing). None for an inference-only model.
        data_preprocessor, init_cfg: See mmengine's `BaseModel`.
    """

    weight_family = FASTER_RCNN

    def __init__(
        self,
        backbone: dict,
        neck: dict,
        rpn_head: dict,
        roi_head: dict,
        test_cfg: dict,
        train_cfg: dict | None = None,
        data_preprocessor: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(data_preprocessor, init_cfg)
        train_cfg = train_cfg or {}
        self.backbone, self.neck = build_backbone_and_neck(backbone, neck)
        self.rpn_head = MODELS.build({**rpn_head, 'train_cfg': train_cfg.get('rpn')})
        second = {'train_cfg': train_cfg.get('rcnn'), 'test_cfg': test_cfg['rcnn']}
        self.roi_head = MODELS.build({**roi_head, **second})
        self.test_proposal_cfg = test_cfg['rpn']
        self.train_proposal_cfg = train_cfg.get('rpn_proposal', self.test_proposal_cfg)

    @property
    def num_classes(self) -> int:
        """See `BaseDetector`."""
        return self.roi_head.bbox_head.num_classes

    def prepare_for_counting(self) -> None:
        """Keep all proposals: those of random weights overlap so much that NMS would remove nearly all of them."""
        keep_all = {'type': 'nms', 'iou_threshold': 1.0}
        self.test_proposal_cfg = {**self.test_proposal_cfg, 'nms': keep_all, 'min_bbox_size': -1}

    def loss(self, batch: ImageBatch, samples: Samples) -> dict[str, Tensor]:
        """See `BaseDetector`: `loss_rpn_cls`, `loss_rpn_bbox`, `loss_cls`, `loss_bbox`, and `acc` in percent."""
        if not self.rpn_head.train_cfg:
            raise ValueError('this FasterRCNN was built without train_cfg and supports only inference')
        feats, anchors, proposals = self.propose(batch, self.train_proposal_cfg)
        return {**self.rpn_head.loss(anchors, samples), **self.roi_head.loss(feats, proposals, samples)}

    def count_ahead(self, batch: ImageBatch, samples: Samples) -> dict[str, int]:
        """Numbers of sampled anchors and regions in this batch, which normalise the losses of both stages.

        The sampler returns fewer regions if there are few proposals, so their number is known only after the first
        stage. The training loop requests it before the first backward pass of an accumulation window.
        """
        feats, anchors, proposals = self.propose(batch, self.train_proposal_cfg)
        regions = self.roi_head.count_ahead(feats, proposals, samples)
        return {**self.rpn_head.count_ahead(anchors, samples), **regions}

    def predict(self, batch: ImageBatch, samples: Samples) -> Samples:
        """See `BaseDetector`."""
        feats, _, proposals = self.propose(batch, self.test_proposal_cfg)
        for sample, found in zip(samples, self.roi_head.predict(feats, proposals, samples), strict=True):
            found.bboxes = sample.to_original(found.bboxes)
            sample.pred_instances = found
        return samples

    def detect(self, batch: ImageBatch) -> Detections:
        """See `BaseDetector`; the detections of each image are padded to `max_per_img`."""
        feats, _, proposals = self.propose(batch, self.test_proposal_cfg)
        places = self.roi_head.test_cfg['max_per_img']
        if places < 1:
            raise ConfigError(f'test_cfg.rcnn.max_per_img={places}: set a positive limit for the export.')
        found = (
            [F.pad(field, (0, 0) * (field.dim() - 1) + (0, places))[:places] for field in image]
            for image in self.roi_head.detect(feats, proposals, batch.sizes_hw)
        )
        return Detections(*map(torch.stack, zip(*found, strict=True)))

    def tensor(self, batch: ImageBatch) -> tuple[AnchorPredictions, RoIPredictions]:
        """See `BaseDetector`: predictions of both stages; the second runs on the proposals of the first."""
        feats, anchors, proposals = self.propose(batch, self.test_proposal_cfg)
        return anchors, self.roi_head(feats, [p.boxes_xyxy_px for p in proposals])

    def propose(
        self, batch: ImageBatch, cfg: dict
    ) -> tuple[tuple[Tensor, ...], AnchorPredictions, list[Proposals]]:
        """Run the first stage. Return the feature levels, the anchor predictions and the proposals of each image."""
        feats = self.extract_feat(batch.images)  # L x (B, C, H_l, W_l)
        anchors = self.rpn_head(feats, batch.images.shape[-2:])
        return feats, anchors, self.rpn_head.propose(anchors, batch.sizes_hw, cfg)
