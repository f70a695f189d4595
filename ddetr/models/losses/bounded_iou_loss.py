"""Bounded IoU loss (Tychsen-Smith and Petersson, "Improving Object Localization with Fitness NMS", section 4)."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torchvision.ops import box_convert

from ddetr.registry import MODELS

from .losses import _BoxLoss


@MODELS.register_module()
class BoundedIoULoss(_BoxLoss):
    """Bounds the IoU from above in x, y, w and h each, and takes the smooth L1 loss of 1 - bound.

    Args:
        beta: of the smooth L1 loss.
        eps: kept away from zero when dividing, in pixels.
        reduction, loss_weight: as everywhere.
    """

    def __init__(
        self, beta: float = 0.2, eps: float = 1e-3, reduction: str = 'mean', loss_weight: float = 1.0
    ) -> None:
        super().__init__(partial(_one_minus_bounds, beta=beta, eps=eps), reduction, loss_weight)


def _one_minus_bounds(pred: Tensor, target: Tensor, beta: float, eps: float) -> Tensor:
    """(N, 4), (N, 4), x1 y1 x2 y2 -> (N, 4), for cx, cy, w, h."""
    pred_xy, pred_wh = box_convert(pred, 'xyxy', 'cxcywh').split(2, dim=-1)
    xy, wh = box_convert(target, 'xyxy', 'cxcywh').split(2, dim=-1)
    distance = (xy - pred_xy).abs()
    iou_of_shift = ((wh - 2 * distance) / (wh + 2 * distance + eps)).clamp(min=0)
    iou_of_scale = torch.min(wh / (pred_wh + eps), pred_wh / (wh + eps))
    loss = 1 - torch.cat([iou_of_shift, iou_of_scale], dim=-1)
    return F.smooth_l1_loss(loss, torch.zeros_like(loss), beta=beta, reduction='none')
