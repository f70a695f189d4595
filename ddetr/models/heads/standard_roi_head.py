"""Second stage of Faster R-CNN: from proposals to detections."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule
from mmengine.structures import InstanceData
from torch import Tensor

from ddetr.registry import MODELS, TASK_UTILS
from ddetr.structures import DetDataSample, Proposals, RoIPredictions, RoITargets
from ddetr.structures.effective_batch import effective_batch

COUNT = 'sampled regions'


@MODELS.register_module()
class StandardRoIHead(BaseModule):
    """Samples proposals (in training), pools their features and runs the box head.

    Args:
        bbox_roi_extractor, bbox_head: Configs of the components.
        train_cfg: Dict with `assigner`, `sampler` and `pos_weight` (weight of positive regions; 1 if not positive).
        test_cfg: Dict with `score_thr`, `nms`, `max_per_img` and `min_bbox_size`; see `Shared2FCBBoxHead.select`.
    """

    def __init__(
        self,
        bbox_roi_extractor: dict,
        bbox_head: dict,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.bbox_roi_extractor = MODELS.build(bbox_roi_extractor)
        self.bbox_head = MODELS.build(bbox_head)
        self.train_cfg, self.test_cfg = train_cfg or {}, test_cfg or {}
        if train_cfg:
            self.assigner = TASK_UTILS.build(train_cfg['assigner'])
            self.sampler = TASK_UTILS.build(train_cfg['sampler'])

    def reset_classes(self, num_classes: int) -> list[str]:
        """See `Shared2FCBBoxHead.reset_classes`."""
        return [f'bbox_head.{name}' for name in self.bbox_head.reset_classes(num_classes)]

    def forward(self, feats: Sequence[Tensor], boxes: Sequence[Tensor]) -> RoIPredictions:
        """Predict for all R regions, image by image, from `feats` L x (B, C, H_l, W_l) and `boxes` B x (n_i, 4)."""
        return self.bbox_head(self.bbox_roi_extractor(feats, boxes))

    def loss(
        self, feats: Sequence[Tensor], proposals: list[Proposals], samples: list[DetDataSample]
    ) -> dict[str, Tensor]:
        """`loss_cls`, `loss_bbox` and `acc` on sampled proposals."""
        targets = self._sample(feats, proposals, samples)
        preds = self(feats, [t.boxes_xyxy_px for t in targets])
        together = RoITargets(*(torch.cat(field) for field in zip(*targets, strict=True)))
        batch = effective_batch(samples)
        avg_factor = batch.share(batch.total(COUNT, len(together.labels)))
        return self.bbox_head.loss(preds, together, avg_factor, self.train_cfg.get('pos_weight', -1))

    def count_ahead(
        self, feats: Sequence[Tensor], proposals: list[Proposals], samples: list[DetDataSample]
    ) -> dict[str, int]:
        """Contribution of this batch to the normaliser of `loss`; see `FasterRCNN.count_ahead`."""
        return {COUNT: sum(len(targets.labels) for targets in self._sample(feats, proposals, samples))}

    def predict(
        self, feats: Sequence[Tensor], proposals: list[Proposals], samples: list[DetDataSample]
    ) -> list[InstanceData]:
        """Detections of each image, in pixels of the resized image, best first."""
        sizes_hw = [sample.img_shape[:2] for sample in samples]
        found = self.detect(feats, proposals, sizes_hw)
        return [InstanceData(bboxes=boxes, scores=scores, labels=labels) for boxes, scores, labels in found]

    def detect(
        self, feats: Sequence[Tensor], proposals: list[Proposals], sizes_hw: Sequence[tuple[int, int]]
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Boxes (m, 4) in pixels of the resized image, scores (m,) and labels (m,) of each image, best first."""
        boxes = [p.boxes_xyxy_px for p in proposals]
        fields = (field.split([box.shape[0] for box in boxes]) for field in self(feats, boxes))
        per_image = (RoIPredictions(*pred) for pred in zip(*fields, strict=True))
        return [
            self.bbox_head.select(pred, box, size, self.test_cfg)
            for pred, box, size in zip(per_image, boxes, sizes_hw, strict=True)
        ]

    def _sample(
        self, feats: Sequence[Tensor], proposals: list[Proposals], samples: list[DetDataSample]
    ) -> list[RoITargets]:
        return [
            self._sample_regions([feat[i : i + 1] for feat in feats], proposals[i].boxes_xyxy_px, sample)
            for i, sample in enumerate(samples)
        ]

    @torch.no_grad()
    def _sample_regions(self, feats: Sequence[Tensor], boxes: Tensor, sample: DetDataSample) -> RoITargets:
        """Sample training regions of one image from its proposals (n, 4) and features L x (1, C, H_l, W_l)."""
        gt_boxes, gt_labels = sample.gt_instances.bboxes, sample.gt_instances.labels
        gt_index = self.assigner.assign(boxes, gt_boxes, sample.ignored_boxes)
        if self.sampler.add_gt_as_proposals:
            boxes = torch.cat([gt_boxes, boxes])
            gt_index = torch.cat([torch.arange(len(gt_boxes), device=gt_index.device), gt_index])
        labels = torch.full_like(gt_index, self.bbox_head.num_classes)  # background
        labels[gt_index >= 0] = gt_labels[gt_index[gt_index >= 0]]

        def hardness(index: Tensor) -> Tensor:
            return F.cross_entropy(self(feats, [boxes[index]]).logits, labels[index], reduction='none')

        sampled = self.sampler.sample(gt_index, hardness, sample.generator(COUNT, gt_index.device))
        chosen = torch.cat([sampled.positive, sampled.negative])
        return RoITargets(boxes[chosen], labels[chosen], gt_boxes[gt_index[sampled.positive]])
