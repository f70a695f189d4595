from .base_detector import BaseDetector
from .deformable_detr import DeformableDETR
from .detr import DETR
from .dino import DINO, DINOHead
from .faster_rcnn import FasterRCNN

__all__ = ['DETR', 'DINO', 'BaseDetector', 'DINOHead', 'DeformableDETR', 'FasterRCNN']
