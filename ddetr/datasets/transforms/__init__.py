# Importing mmcv.transforms registers its RandomFlip, Pad, RandomChoice, ... for configs.
from mmcv.transforms import Compose

from .formatting import PackDetInputs
from .geometry import FilterAnnotations, RandomCrop, Resize
from .loading import LoadAnnotations, LoadImageFromFile

__all__ = [
    'Compose',
    'FilterAnnotations',
    'LoadAnnotations',
    'LoadImageFromFile',
    'PackDetInputs',
    'RandomCrop',
    'Resize',
]
