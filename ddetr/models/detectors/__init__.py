from .base_detector import BaseDetector
from .deformable_detr import DeformableDETR
from .detr import DETR
from .faster_rcnn import FasterRCNN

__all__ = ['DETR', 'BaseDetector', 'DeformableDETR', 'FasterRCNN']
