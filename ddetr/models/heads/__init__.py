from .deformable_detr_head import DeformableDETRHead
from .detr_head import DETRHead
from .rpn_head import RPNHead
from .shared_2fc_bbox_head import Shared2FCBBoxHead
from .standard_roi_head import StandardRoIHead

__all__ = [
    'DETRHead',
    'DeformableDETRHead',
    'RPNHead',
    'Shared2FCBBoxHead',
    'StandardRoIHead',
]
