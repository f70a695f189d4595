"""Classifies regions and refines their boxes (Girshick, "Fast R-CNN", section 2)."""

from typing import Any

import torch
import torch.nn.functional as F
from mmengine.model import BaseModule, normal_init
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ddetr.registry import MODELS, TASK_UTILS
from ddetr.structures import RoIPredictions, RoITargets

from ..task_modules.nms import grouped_nms
from .reset import reset_linears


@MODELS.register_module()
class Shared2FCBBoxHead(BaseModule):
    """Two hidden layers over a region's features, then the class and the deltas to the box.

    Args:
        in_channels: of a region's features.
        num_classes: K, without background.
        bbox_coder, loss_cls, loss_bbox: configs of the parts; `loss_cls` with softmax, where background is class K.
        fc_out_channels: of the hidden layers.
        roi_feat_size: side of a region's features, in cells.
        reg_class_agnostic: one box for all classes rather than one for each.
        reg_decoded_bbox: `loss_bbox` compares boxes (the IoU family), not deltas.

    Raises:
        ValueError: a `loss_cls` with sigmoid.
    """

    def __init__(
        self,
        in_channels: int,
        num_classes: int,
        bbox_coder: dict,
        loss_cls: dict,
        loss_bbox: dict,
        fc_out_channels: int = 1024,
        roi_feat_size: int = 7,
        reg_class_agnostic: bool = False,
        reg_decoded_bbox: bool = False,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(
            init_cfg
            or [
                {'type': 'Normal', 'std': 0.01, 'override': {'name': 'fc_cls'}},
                {'type': 'Normal', 'std': 0.001, 'override': {'name': 'fc_reg'}},
                {'type': 'Xavier', 'distribution': 'uniform', 'override': {'name': 'shared_fcs'}},
            ]
        )
        self.num_classes = num_classes
        self.reg_decoded_bbox = reg_decoded_bbox
        self.bbox_coder = TASK_UTILS.build(bbox_coder)
        self.loss_cls = MODELS.build(loss_cls)
        self.loss_bbox = MODELS.build(loss_bbox)
        if self.loss_cls.use_sigmoid:
            raise ValueError('Shared2FCBBoxHead classifies by softmax: set use_sigmoid=False in its loss_cls')
        widths = (in_channels * roi_feat_size**2, fc_out_channels)
        self.shared_fcs = nn.ModuleList(nn.Linear(width, fc_out_channels) for width in widths)
        self.reg_class_agnostic = reg_class_agnostic
        self.fc_cls = nn.Linear(fc_out_channels, num_classes + 1)
        self.fc_reg = nn.Linear(fc_out_channels, 4 * (1 if reg_class_agnostic else num_classes))

    @torch.no_grad()
    def reset_classes(self, num_classes: int) -> list[str]:
        """New layers for `num_classes` classes, with small Gaussians; the names of their tensors."""
        self.num_classes = num_classes
        layers = [('fc_cls', num_classes + 1, 0.01), ('fc_reg', 4 * num_classes, 0.001)]
        names = []
        for path, rows, std in layers[:1] if self.reg_class_agnostic else layers:
            names += reset_linears(self, path, rows)
            normal_init(self.get_submodule(path), std=std)
        return names

    def forward(self, roi_feats: Tensor) -> RoIPredictions:
        """(R, C, s, s) -> predictions for every region, in float32."""
        hidden = roi_feats.flatten(1)  # (R, C * s * s)
        for layer in self.shared_fcs:
            hidden = F.relu(layer(hidden))
        return RoIPredictions(self.fc_cls(hidden).float(), self.fc_reg(hidden).float())

    def loss(
        self, preds: RoIPredictions, targets: RoITargets, avg_factor: float, pos_weight: float = -1
    ) -> dict[str, Tensor]:
        """`loss_cls` and `loss_bbox`, both divided by `avg_factor`, and `acc`, the accuracy in percent.

        `pos_weight` is that of a region with an object in `loss_cls`; 1 if not positive.
        """
        labels = targets.labels
        positive = (labels < self.num_classes).nonzero().flatten()  # (P,)
        weight = torch.where(labels < self.num_classes, pos_weight, 1.0) if pos_weight > 0 else None
        deltas = _deltas_of_class(preds.deltas, positive, labels[positive])  # (P, 4)
        boxes = targets.boxes_xyxy_px[positive]
        if self.reg_decoded_bbox:
            reg_pred, reg_target = self.bbox_coder.decode(boxes, deltas), targets.gt_boxes_xyxy_px
        else:
            reg_pred, reg_target = deltas, self.bbox_coder.encode(boxes, targets.gt_boxes_xyxy_px)
        return {
            'loss_cls': self.loss_cls(preds.logits, labels, weight, avg_factor=avg_factor),
            'loss_bbox': self.loss_bbox(reg_pred, reg_target, avg_factor=avg_factor),
            'acc': (preds.logits.argmax(1) == labels).sum() * 100.0 / max(len(labels), 1),
        }

    def detect(
        self, preds: RoIPredictions, boxes: Tensor, image_size: tuple[int, int], cfg: dict[str, Any]
    ) -> InstanceData:
        """What `select` chooses, as `bboxes`, `scores` and `labels`."""
        bboxes, scores, labels = self.select(preds, boxes, image_size, cfg)
        return InstanceData(bboxes=bboxes, scores=scores, labels=labels)

    def select(
        self, preds: RoIPredictions, boxes: Tensor, image_size: tuple[int, int], cfg: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The detections in one image: boxes (m, 4) in its pixels, scores (m,), labels (m,), best first.

        Args:
            preds: for the image's n regions.
            boxes: (n, 4), the regions.
            image_size: (h, w), to which boxes are clipped.
            cfg: `score_thr`, `nms` within each class, `max_per_img` (no limit if not positive), `min_bbox_size`
                (both sides have to be longer; by default no limit).
        """
        scores = preds.logits.softmax(dim=1)[:, : self.num_classes]  # (n, K)
        region, label = (scores > cfg['score_thr']).nonzero().unbind(1)
        deltas = _deltas_of_class(preds.deltas, region, label)
        decoded = self.bbox_coder.decode(boxes[region], deltas, image_size)  # (m, 4)
        score = scores[region, label]
        limits = cfg.get('max_per_img', -1), cfg.get('min_bbox_size', -1)
        keep, score = grouped_nms(decoded, score, label, cfg['nms'], *limits)
        return decoded[keep], score, label[keep]


def _deltas_of_class(deltas: Tensor, region: Tensor, label: Tensor) -> Tensor:
    """(R, 4K) or (R, 4), and m pairs of a region and a class -> (m, 4)."""
    per_class = deltas.view(deltas.shape[0], deltas.shape[1] // 4, 4)
    return per_class[region, label if per_class.shape[1] > 1 else torch.zeros_like(label)]
