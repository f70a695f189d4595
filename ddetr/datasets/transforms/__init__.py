# Importing mmcv.transforms registers its RandomFlip, Pad, ... for configs.
from mmcv.transforms import Compose

from .batch_draws import RandomChoice, RandomChoiceResize, RandomResize
from .formatting import PackDetInputs
from .geometry import FilterAnnotations, RandomCrop, Resize
from .loading import LoadAnnotations, LoadImageFromFile

__all__ = [
    'Compose',
    'FilterAnnotations',
    'LoadAnnotations',
    'LoadImageFromFile',
    'PackDetInputs',
    'RandomChoice',
    'RandomChoiceResize',
    'RandomCrop',
    'RandomResize',
    'Resize',
]
