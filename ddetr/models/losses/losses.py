"""Losses with MMDetection's config keys, based on torch and torchvision, and their shared reduction."""

from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import (
    box_convert,
    complete_box_iou_loss,
    distance_box_iou_loss,
    generalized_box_iou_loss,
    sigmoid_focal_loss,
)

from ddetr.registry import MODELS

REDUCTIONS = ('none', 'mean', 'sum')


def check_reduction(reduction: str) -> str:
    """Return `reduction`; raise ValueError unless it is `none`, `mean` or `sum`."""
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction={reduction!r} must be one of {REDUCTIONS}')
    return reduction


class _Loss(nn.Module):
    """Base class of weighted and reduced losses.

    Args:
        reduction: `none`, `mean` or `sum`.
        loss_weight: Factor applied to the reduced loss.
    """

    def __init__(self, reduction: str, loss_weight: float) -> None:
        super().__init__()
        self.reduction, self.loss_weight = check_reduction(reduction), loss_weight

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """Compute the unreduced loss."""
        raise NotImplementedError

    def forward(
        self,
        pred: Tensor,
        target: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """Compute the loss of N predictions; a scalar unless `reduction='none'`.

        Args:
            pred, target: (N, K) logits and (N,) classes, or (N, 4) boxes.
            weight: (N,) or like `pred`; None for ones.
            avg_factor: Divisor used by `reduction='mean'` instead of the number of elements.

        Raises:
            ValueError: `avg_factor` with `reduction='sum'`.
        """
        loss = self.compare(pred, target)  # classes: (N, K) or (N,), boxes: (N, 4) or (N,)
        if weight is not None:
            if weight.dim() > loss.dim():
                weight = weight.mean(-1)  # IoU losses have one value per box
            loss = loss * weight.reshape(weight.shape + (1,) * (loss.dim() - weight.dim()))
        if self.reduction == 'none':
            return self.loss_weight * loss
        if avg_factor is None:
            return self.loss_weight * (loss.mean() if self.reduction == 'mean' else loss.sum())
        if self.reduction == 'sum':
            raise ValueError('avg_factor is only used with reduction="mean", not with "sum"')
        return self.loss_weight * loss.sum() / avg_factor


@MODELS.register_module()
class FocalLoss(_Loss):
    """Sigmoid focal loss of logits (N, K) and labels (N,) int64; label K means background.

    Raises:
        ValueError: `use_sigmoid=False`, which the paper does not define.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        if not use_sigmoid:
            raise ValueError('FocalLoss supports only sigmoid: set use_sigmoid=True')
        self.use_sigmoid = True
        self.gamma, self.alpha = gamma, alpha

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """(N, K)."""
        one_hot = F.one_hot(target, pred.shape[1] + 1)[:, :-1].to(pred)  # zeros for K, the background
        return sigmoid_focal_loss(pred, one_hot, self.alpha, self.gamma)


@MODELS.register_module()
class CrossEntropyLoss(_Loss):
    """Cross entropy of logits (N, K) and labels (N,) int64. Binary logits may be (N, 1) or (N,).

    Args:
        use_sigmoid: Whether to use binary cross entropy over one-hot labels, where label K (the number of logits)
            means background. Otherwise softmax is used, where every label is a class.
        class_weight: Weight of each class, softmax only; None for 1.
        bg_cls_weight: Weight of the last class, "no object" (Carion et al., 2020, section 3.1).
    """

    def __init__(
        self,
        use_sigmoid: bool = False,
        class_weight: list[float] | float | None = None,
        bg_cls_weight: float | None = None,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__(reduction, loss_weight)
        self.use_sigmoid = use_sigmoid
        self.class_weight, self.bg_cls_weight = class_weight, bg_cls_weight

    def compare(self, pred: Tensor, target: Tensor) -> Tensor:
        """(N, K) with sigmoid, (N,) with softmax."""
        if self.use_sigmoid:
            logits = pred.reshape(len(target), -1)  # (N, K)
            one_hot = F.one_hot(target, logits.shape[1] + 1)[:, :-1].to(logits)  # zeros for K, the background
            return F.binary_cross_entropy_with_logits(logits, one_hot, reduction='none')
        return F.cross_entropy(pred, target, self._class_weights(pred), reduction='none')

    def _class_weights(self, logits: Tensor) -> Tensor | None:
        """Class weights (K,): `class_weight`, with `bg_cls_weight` for the last class."""
        if self.class_weight is None and self.bg_cls_weight is None:
            return None
        weights = logits.new_ones(logits.shape[1])
        if self.class_weight is not None:
            weights = weights * torch.as_tensor(self.class_weight, dtype=logits.dtype, device=logits.device)
        if self.bg_cls_weight is not None:
            weights[-1] = self.bg_cls_weight
        return weights


class _BoxLoss(_Loss):
    """Loss of x1 y1 x2 y2 boxes or deltas (N, 4), defined by a comparison function."""

    def __init__(self, compare: Callable[..., Tensor], reduction: str, loss_weight: float) -> None:
        super().__init__(reduction, loss_weight)
        self.compare = compare  # type: ignore[method-assign]


@MODELS.register_module()
class L1Loss(_BoxLoss):
    """Absolute difference of coordinates or deltas."""

    def __init__(self, reduction: str = 'mean', loss_weight: float = 1.0) -> None:
        super().__init__(partial(F.l1_loss, reduction='none'), reduction, loss_weight)


@MODELS.register_module()
class SmoothL1Loss(_BoxLoss):
    """Smooth L1: squared below `beta`, absolute above it (Girshick, 2015, section 2.3)."""

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
        ValueError: `mode` is not `log`, `linear` or `square`.
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
            raise ValueError(f'mode={mode!r} must be one of {tuple(self.MODES)}')
        shape = self.MODES['linear' if linear else mode]
        super().__init__(lambda a, b: shape(_paired_iou(a, b, eps).clamp(min=eps)), reduction, loss_weight)


def _paired_iou(boxes_a: Tensor, boxes_b: Tensor, eps: float) -> Tensor:
    """Elementwise IoU of paired boxes: (N, 4), (N, 4) -> (N,)."""
    sides = torch.min(boxes_a[:, 2:], boxes_b[:, 2:]) - torch.max(boxes_a[:, :2], boxes_b[:, :2])
    overlap = sides.clamp(min=0).prod(-1)
    union = sum((b[:, 2:] - b[:, :2]).prod(-1) for b in (boxes_a, boxes_b)) - overlap
    return overlap / union.clamp(min=eps)


@MODELS.register_module()
class BoundedIoULoss(_BoxLoss):
    """Smooth L1 loss of 1 - bound, where each of x, y, w and h gives an upper bound of the IoU.

    Source: Tychsen-Smith and Petersson, "Improving Object Localization with Fitness NMS", section 4.

    Args:
        beta: Threshold of the smooth L1 loss.
        eps: Added to divisors to avoid division by zero, in pixels.
    """

    def __init__(
        self, beta: float = 0.2, eps: float = 1e-3, reduction: str = 'mean', loss_weight: float = 1.0
    ) -> None:
        super().__init__(partial(_one_minus_bounds, beta=beta, eps=eps), reduction, loss_weight)


def _one_minus_bounds(pred: Tensor, target: Tensor, beta: float, eps: float) -> Tensor:
    """Unreduced bounded IoU loss of x1 y1 x2 y2 boxes: (N, 4), (N, 4) -> (N, 4), for cx, cy, w, h."""
    pred_xy, pred_wh = box_convert(pred, 'xyxy', 'cxcywh').split(2, dim=-1)
    xy, wh = box_convert(target, 'xyxy', 'cxcywh').split(2, dim=-1)
    distance = (xy - pred_xy).abs()
    iou_of_shift = ((wh - 2 * distance) / (wh + 2 * distance + eps)).clamp(min=0)
    iou_of_scale = torch.min(wh / (pred_wh + eps), pred_wh / (wh + eps))
    loss = 1 - torch.cat([iou_of_shift, iou_of_scale], dim=-1)
    return F.smooth_l1_loss(loss, torch.zeros_like(loss), beta=beta, reduction='none')
