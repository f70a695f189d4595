from .anchor_generator import AnchorGenerator
from .bbox_coder import DeltaXYWHBBoxCoder
from .hungarian_assigner import (
    BBoxL1Cost,
    ClassificationCost,
    FocalLossCost,
    HungarianAssigner,
    IoUCost,
)
from .max_iou_assigner import MaxIoUAssigner
from .samplers import OHEMSampler, PseudoSampler, RandomSampler

__all__ = [
    'AnchorGenerator',
    'BBoxL1Cost',
    'ClassificationCost',
    'DeltaXYWHBBoxCoder',
    'FocalLossCost',
    'HungarianAssigner',
    'IoUCost',
    'MaxIoUAssigner',
    'OHEMSampler',
    'PseudoSampler',
    'RandomSampler',
]
