from .base_detector import BaseDetector
from .deformable_detr import DeformableDETR
from .faster_rcnn import FasterRCNN

__all__ = ['BaseDetector', 'DeformableDETR', 'FasterRCNN']
