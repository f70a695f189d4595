"""One-to-one matching of predictions and ground truth, and its costs (Carion et al., 2020, section 3.1)."""

from abc import ABC, abstractmethod

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor
from torchvision.ops import box_convert, box_iou, generalized_box_iou

from ddetr.registry import TASK_UTILS
from ddetr.structures import Matching, SetTargets
from ddetr.utils.nonfinite import raise_or_note


class MatchCost(ABC):
    """Base class of the weighted terms of the matching cost."""

    def __init__(self, weight: float = 1.0) -> None:
        self.weight = weight

    @abstractmethod
    def __call__(self, cls_logits: Tensor, boxes_cxcywh_norm: Tensor, targets: SetTargets) -> Tensor:
        """Cost (N, G) of matching N queries with logits (N, K) and boxes (N, 4) to G targets."""


@TASK_UTILS.register_module()
class FocalLossCost(MatchCost):
    """Focal loss of the target's class as positive minus its focal loss as negative.

    Raises:
        ValueError: `binary_input=True`, which MMDetection uses for mask costs.
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
            raise ValueError('FocalLossCost(binary_input=True) is for masks, which are not supported')
        self.alpha, self.gamma, self.eps = alpha, gamma, eps

    def __call__(self, cls_logits: Tensor, boxes_cxcywh_norm: Tensor, targets: SetTargets) -> Tensor:
        prob = cls_logits.sigmoid()  # (N, K)
        negative = -(1 - prob + self.eps).log() * (1 - self.alpha) * prob**self.gamma
        positive = -(prob + self.eps).log() * self.alpha * (1 - prob) ** self.gamma
        return self.weight * (positive - negative)[:, targets.labels]


@TASK_UTILS.register_module()
class ClassificationCost(MatchCost):
    """Negative softmax probability of the target's class."""

    def __call__(self, cls_logits: Tensor, boxes_cxcywh_norm: Tensor, targets: SetTargets) -> Tensor:
        return -self.weight * cls_logits.softmax(-1)[:, targets.labels]


@TASK_UTILS.register_module()
class BBoxL1Cost(MatchCost):
    """L1 distance of normalised boxes. `box_format='xywh'` compares centres and sizes, `'xyxy'` corners."""

    def __init__(self, box_format: str = 'xyxy', weight: float = 1.0) -> None:
        super().__init__(weight)
        if box_format not in ('xywh', 'xyxy'):
            raise ValueError(f'box_format={box_format!r} must be "xywh" or "xyxy"')
        self.box_format = box_format

    def __call__(self, cls_logits: Tensor, boxes_cxcywh_norm: Tensor, targets: SetTargets) -> Tensor:
        pred, target = boxes_cxcywh_norm, targets.boxes_cxcywh_norm
        if self.box_format == 'xyxy':
            pred, target = (box_convert(b, 'cxcywh', 'xyxy') for b in (pred, target))
        return self.weight * torch.cdist(pred, target, p=1)


@TASK_UTILS.register_module()
class IoUCost(MatchCost):
    """Negative IoU or, with `iou_mode='giou'`, negative generalised IoU."""

    def __init__(self, iou_mode: str = 'giou', weight: float = 1.0) -> None:
        super().__init__(weight)
        if iou_mode not in ('iou', 'giou'):
            raise ValueError(f'iou_mode={iou_mode!r} must be "iou" or "giou"')
        self.overlap = generalized_box_iou if iou_mode == 'giou' else box_iou

    def __call__(self, cls_logits: Tensor, boxes_cxcywh_norm: Tensor, targets: SetTargets) -> Tensor:
        corners = (box_convert(b, 'cxcywh', 'xyxy') for b in (boxes_cxcywh_norm, targets.boxes_cxcywh_norm))
        return -self.weight * self.overlap(*corners)


@TASK_UTILS.register_module()
class HungarianAssigner:
    """Finds the matching with the lowest total cost. `match_costs` are the configs of one or more costs to sum."""

    def __init__(self, match_costs: dict | list[dict]) -> None:
        configs = [match_costs] if isinstance(match_costs, dict) else list(match_costs)
        if not configs:
            raise ValueError('HungarianAssigner needs at least one entry in match_costs')
        self.match_costs = [TASK_UTILS.build(cfg) for cfg in configs]

    @torch.no_grad()
    def assign(self, cls_logits: Tensor, boxes_cxcywh_norm: Tensor, targets: SetTargets) -> list[Matching]:
        """Match the queries of every decoder layer with the targets of one image.

        Args:
            cls_logits: (N, Q, K), for N decoder layers.
            boxes_cxcywh_norm: (N, Q, 4).
            targets: Ground truth of the image, G boxes.

        Returns:
            N matchings of min(Q, G) pairs each, on the device of the logits.

        Raises:
            ValueError: A cost is not finite. In a watched training step (`BlackBoxHook`), the error is recorded
                instead and non-finite costs are replaced by very large ones.
        """
        layers, queries, _ = cls_logits.shape
        logits, boxes = cls_logits.flatten(0, 1).float(), boxes_cxcywh_norm.flatten(0, 1).float()
        cost = sum(term(logits, boxes, targets) for term in self.match_costs)  # (N * Q, G)
        cost = cost.view(layers, queries, -1).cpu()  # one transfer for all layers
        if not cost.isfinite().all():
            raise_or_note(_fault(cost, logits, boxes, targets))
            cost = torch.where(cost.isfinite(), cost, torch.finfo(cost.dtype).max / 4)
        pairs = [linear_sum_assignment(layer.numpy()) for layer in cost]  # each Q indices, G indices
        return [Matching(*(torch.as_tensor(i, device=cls_logits.device) for i in pair)) for pair in pairs]


def _fault(cost: Tensor, logits: Tensor, boxes: Tensor, targets: SetTargets) -> str:
    """Describe which inputs caused non-finite matching costs."""
    parts = {
        'predicted logits': logits,
        'predicted boxes': boxes,
        "ground-truth boxes (check the image's annotations)": targets.boxes_cxcywh_norm,
    }
    bad = [
        f'{int((~value.isfinite()).sum())} of {value.numel()} {name}'
        for name, value in parts.items()
        if not value.isfinite().all()
    ]
    return (
        f'{int((~cost.isfinite()).sum())} of {cost.numel()} matching costs are not finite, as are '
        f'{" and ".join(bad) or "no predictions: the costs themselves overflow"}'
    )
