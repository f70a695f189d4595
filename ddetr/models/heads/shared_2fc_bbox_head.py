"""Region classification and box refinement (Girshick, "Fast R-CNN", section 2)."""

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
    """Box head with two shared hidden layers, followed by a class branch and a box delta branch.

    Args:
        in_channels: Channels of the region features.
        num_classes: Number of classes K, excluding background.
        bbox_coder, loss_cls, loss_bbox: Configs of the components; `loss_cls` must use softmax, with background as
            class K.
        fc_out_channels: Channels of the hidden layers.
        roi_feat_size: Side length of the region features, in cells.
        reg_class_agnostic: Whether to predict one box for all classes instead of one per class.
        reg_decoded_bbox: Whether `loss_bbox` compares decoded boxes (for IoU losses) instead of deltas.

    Raises:
        ValueError: `loss_cls` uses sigmoid.
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
            raise ValueError('Shared2FCBBoxHead needs a softmax loss: set loss_cls.use_sigmoid=False')
        widths = (in_channels * roi_feat_size**2, fc_out_channels)
        self.shared_fcs = nn.ModuleList(nn.Linear(width, fc_out_channels) for width in widths)
        self.reg_class_agnostic = reg_class_agnostic
        self.fc_cls = nn.Linear(fc_out_channels, num_classes + 1)
        self.fc_reg = nn.Linear(fc_out_channels, 4 * (1 if reg_class_agnostic else num_classes))

    @torch.no_grad()
    def reset_classes(self, num_classes: int) -> list[str]:
        """Reinitialise the class-dependent layers with small Gaussians. Return the names of the new tensors."""
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
        """`loss_cls` and `loss_bbox`, normalised by `avg_factor`, and `acc`, the accuracy in percent.

        `pos_weight` is the weight of positive regions in `loss_cls`; 1 if not positive.
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
        """Detections of `select` as `InstanceData` with `bboxes`, `scores` and `labels`."""
        bboxes, scores, labels = self.select(preds, boxes, image_size, cfg)
        return InstanceData(bboxes=bboxes, scores=scores, labels=labels)

    def select(
        self, preds: RoIPredictions, boxes: Tensor, image_size: tuple[int, int], cfg: dict[str, Any]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Detections in one image: boxes (m, 4) in pixels of the image, scores (m,) and labels (m,), best first.

        Args:
            preds: Predictions for the n regions of the image.
            boxes: (n, 4), the regions.
            image_size: (h, w), to which boxes are clipped.
            cfg: Dict with `score_thr`, `nms` (applied per class), `max_per_img` (no limit if not positive) and
                `min_bbox_size` (both sides must exceed it; default: no limit).
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
    """Gather deltas (m, 4) for m pairs of region and class from (R, 4K), or (R, 4) if class-agnostic."""
    per_class = deltas.view(deltas.shape[0], deltas.shape[1] // 4, 4)
    return per_class[region, label if per_class.shape[1] > 1 else torch.zeros_like(label)]
