from .bounded_iou_loss import BoundedIoULoss
from .box_losses import CIoULoss, DIoULoss, GIoULoss, IoULoss, L1Loss, SmoothL1Loss
from .cross_entropy_loss import CrossEntropyLoss
from .focal_loss import FocalLoss

__all__ = [
    'BoundedIoULoss',
    'CIoULoss',
    'CrossEntropyLoss',
    'DIoULoss',
    'FocalLoss',
    'GIoULoss',
    'IoULoss',
    'L1Loss',
    'SmoothL1Loss',
]
