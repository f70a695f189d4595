"""Regression losses on boxes: L1, smooth L1 and the IoU family, all computed by torch and torchvision."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import (
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
)

from ddetr.registry import MODELS

from .reduction import check_reduction, weighted_reduce


class _BoxLoss(nn.Module):
    """A loss over pairs of boxes, given as the function that compares them."""

    def __init__(
        self, compare: Callable[[Tensor, Tensor], Tensor], reduction: str, loss_weight: float
    ) -> None:
        super().__init__()
        self.compare = compare
        self.reduction = check_reduction(reduction)
        self.loss_weight = loss_weight

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """`pred` and `target` (N, 4), `weight` (N, 4) or (N,) -> a scalar, unless `reduction='none'`."""
        loss = self.compare(pred, target)  # (N, 4), or (N,) in the IoU family
        if weight is not None and weight.dim() > loss.dim():
            weight = weight.mean(-1)  # the IoU family has one value a box
        return self.loss_weight * weighted_reduce(loss, weight, self.reduction, avg_factor)


@MODELS.register_module()
class L1Loss(_BoxLoss):
    """Absolute difference of coordinates or deltas."""

    def __init__(self, reduction: str = 'mean', loss_weight: float = 1.0) -> None:
        super().__init__(partial(F.l1_loss, reduction='none'), reduction, loss_weight)


@MODELS.register_module()
class SmoothL1Loss(_BoxLoss):
    """Squared below `beta`, absolute above it (Girshick, "Fast R-CNN", section 2.3)."""

    def __init__(self, beta: float = 1.0, reduction: str = 'mean', loss_weight: float = 1.0) -> None:
        super().__init__(partial(F.smooth_l1_loss, beta=beta, reduction='none'), reduction, loss_weight)


@MODELS.register_module()
class GIoULoss(_BoxLoss):
    """1 - generalised IoU of x1 y1 x2 y2 boxes (Rezatofighi et al., 2019)."""

    def __init__(self, eps: float = 1e-7, reduction: str = 'mean', loss_weight: float = 1.0) -> None:
        super().__init__(partial(generalized_box_iou_loss, eps=eps), reduction, loss_weight)


@MODELS.register_module()
class DIoULoss(_BoxLoss):
    """1 - distance IoU of x1 y1 x2 y2 boxes (Zheng et al., 2020)."""

    def __init__(self, eps: float = 1e-7, reduction: str = 'mean', loss_weight: float = 1.0) -> None:
        super().__init__(partial(distance_box_iou_loss, eps=eps), reduction, loss_weight)


@MODELS.register_module()
class CIoULoss(_BoxLoss):
    """1 - complete IoU of x1 y1 x2 y2 boxes (Zheng et al., 2020)."""

    def __init__(self, eps: float = 1e-7, reduction: str = 'mean', loss_weight: float = 1.0) -> None:
        super().__init__(partial(complete_box_iou_loss, eps=eps), reduction, loss_weight)


@MODELS.register_module()
class IoULoss(_BoxLoss):
    """-log IoU (Yu et al., "UnitBox"), or 1 - IoU or 1 - IoU^2, of x1 y1 x2 y2 boxes.

    Raises:
        ValueError: a `mode` that is none of `log`, `linear`, `square`.
    """

    MODES = {
        'log': lambda iou: -iou.log(),
        'linear': lambda iou: 1 - iou,
        'square': lambda iou: 1 - iou**2,
    }

    def __init__(
        self,
        linear: bool = False,
        mode: str = 'log',
        eps: float = 1e-6,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        if mode not in self.MODES:
            raise ValueError(f'mode={mode!r} is none of {tuple(self.MODES)}')
        shape = self.MODES['linear' if linear else mode]
        super().__init__(
            lambda pred, target: shape(_paired_iou(pred, target, eps).clamp(min=eps)), reduction, loss_weight
        )


def _paired_iou(boxes_a: Tensor, boxes_b: Tensor, eps: float) -> Tensor:
    """IoU of the i-th box of one list with the i-th of the other: (N, 4), (N, 4) -> (N,)."""
    sides = torch.min(boxes_a[:, 2:], boxes_b[:, 2:]) - torch.max(boxes_a[:, :2], boxes_b[:, :2])
    overlap = sides.clamp(min=0).prod(-1)
    union = sum((b[:, 2:] - b[:, :2]).prod(-1) for b in (boxes_a, boxes_b)) - overlap
    return overlap / union.clamp(min=eps)
