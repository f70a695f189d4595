"""What it costs to match a query with a ground-truth box (DETR, section 3.1)."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from ddetr.registry import TASK_UTILS
from ddetr.structures import SetTargets


class MatchCost(ABC):
    """A term of the matching cost, with its weight."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    @abstractmethod
    def __call__(self, cls_logits: Tensor, boxes_cxcywh_norm: Tensor, targets: SetTargets) -> Tensor:
        """Cost of N queries with logits (N, K) and boxes (N, 4) for G targets: (N, G)."""


@TASK_UTILS.register_module()
class FocalLossCost(MatchCost):
    """How much the focal loss changes when the query becomes this target's class.

    Raises:
        ValueError: `binary_input=True`, MMDetection's mask costs, which no detector here has.
    """

    def __init__(
        self,
        alpha: float = 0.25,
        gamma: float = 2.0,
        eps: float = 1e-12,
        binary_input: bool = False,
        weight: float = 1.0,
    ) -> None:
        super().__init__(weight)
        if binary_input:
            raise ValueError('FocalLossCost(binary_input=True) is for masks: there are none here')
        self.alpha, self.gamma, self.eps = alpha, gamma, eps

    def __call__(self, cls_logits: Tensor, boxes_cxcywh_norm: Tensor, targets: SetTargets) -> Tensor:
        """See `MatchCost`."""
        prob = cls_logits.sigmoid()  # (N, K)
        negative = -(1 - prob + self.eps).log() * (1 - self.alpha) * prob**self.gamma
        positive = -(prob + self.eps).log() * self.alpha * (1 - prob) ** self.gamma
        return self.weight * (positive - negative)[:, targets.labels]


@TASK_UTILS.register_module()
class ClassificationCost(MatchCost):
    """Minus the softmax probability of the target's class."""

    def __call__(self, cls_logits: Tensor, boxes_cxcywh_norm: Tensor, targets: SetTargets) -> Tensor:
        """See `MatchCost`."""
        return -self.weight * cls_logits.softmax(-1)[:, targets.labels]


@TASK_UTILS.register_module()
class BBoxL1Cost(MatchCost):
    """L1 distance of normalised boxes.

    Args:
        box_format: `xywh` compares centres and sizes, `xyxy` corners.
        weight: of this cost.

    Raises:
        ValueError: another `box_format`.
    """

    def __init__(self, box_format: str = 'xyxy', weight: float = 1.0) -> None:
        super().__init__(weight)
        if box_format not in ('xywh', 'xyxy'):
            raise ValueError(f'box_format={box_format!r} is neither "xywh" nor "xyxy"')
        self.box_format = box_format

    def __call__(self, cls_logits: Tensor, boxes_cxcywh_norm: Tensor, targets: SetTargets) -> Tensor:
        """See `MatchCost`."""
        pred, target = boxes_cxcywh_norm, targets.boxes_cxcywh_norm
        if self.box_format == 'xyxy':
            pred, target = (box_convert(b, 'cxcywh', 'xyxy') for b in (pred, target))
        return self.weight * torch.cdist(pred, target, p=1)


@TASK_UTILS.register_module()
class IoUCost(MatchCost):
    """Minus the (generalised) IoU.

    Raises:
        ValueError: an `iou_mode` that is neither `iou` nor `giou`.
    """

    def __init__(self, iou_mode: str = 'giou', weight: float = 1.0) -> None:
        super().__init__(weight)
        if iou_mode not in ('iou', 'giou'):
            raise ValueError(f'iou_mode={iou_mode!r} is neither "iou" nor "giou"')
        self.overlap = generalized_box_iou if iou_mode == 'giou' else box_iou

    def __call__(self, cls_logits: Tensor, boxes_cxcywh_norm: Tensor, targets: SetTargets) -> Tensor:
        """See `MatchCost`."""
        pred, target = (
            box_convert(b, 'cxcywh', 'xyxy') for b in (boxes_cxcywh_norm, targets.boxes_cxcywh_norm)
        )
        return -self.weight * self.overlap(pred, target)
