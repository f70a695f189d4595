from .losses import (
    BoundedIoULoss,
    CIoULoss,
    CrossEntropyLoss,
    DIoULoss,
    FocalLoss,
    GIoULoss,
    IoULoss,
    L1Loss,
    SmoothL1Loss,
)

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
