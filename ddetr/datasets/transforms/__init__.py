# Importing mmcv.transforms registers its Resize, RandomFlip, Pad, RandomChoice, ... for configs.
from mmcv.transforms import Compose

from .formatting import PackDetInputs
from .geometry import FilterAnnotations, RandomCrop
from .loading import LoadAnnotations, LoadImageFromFile

__all__ = [
    'Compose',
    'FilterAnnotations',
    'LoadAnnotations',
    'LoadImageFromFile',
    'PackDetInputs',
    'RandomCrop',
]
