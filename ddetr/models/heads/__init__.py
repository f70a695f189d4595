from .bbox_head import Shared2FCBBoxHead
from .deformable_detr_head import DeformableDETRHead
from .detr_head import DETRHead
from .roi_extractor import SingleRoIExtractor
from .rpn_head import RPNHead
from .standard_roi_head import StandardRoIHead

__all__ = [
    'DETRHead',
    'DeformableDETRHead',
    'RPNHead',
    'Shared2FCBBoxHead',
    'SingleRoIExtractor',
    'StandardRoIHead',
]
