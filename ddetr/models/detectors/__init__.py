from .base_detector import BaseDetector
from .deformable_detr import DeformableDETR

__all__ = ['BaseDetector', 'DeformableDETR']
