# Importing mmcv.transforms registers its RandomFlip, Pad, ... for configs.
from mmcv.transforms import Compose

from .affine import RandomAffine
from .batch_draws import RandomChoice, RandomChoiceResize, RandomResize
from .colour import PhotoMetricDistortion, YOLOXHSVRandomAug
from .formatting import PackDetInputs
from .geometry import FilterAnnotations, RandomCrop, RandomRotate90, Resize
from .loading import LoadAnnotations, LoadImageFromFile
from .mixing import MixUp, Mosaic
from .zoom import Expand, MinIoURandomCrop

__all__ = [
    'Compose',
    'Expand',
    'FilterAnnotations',
    'LoadAnnotations',
    'LoadImageFromFile',
    'MinIoURandomCrop',
    'MixUp',
    'Mosaic',
    'PackDetInputs',
    'PhotoMetricDistortion',
    'RandomAffine',
    'RandomChoice',
    'RandomChoiceResize',
    'RandomCrop',
    'RandomResize',
    'RandomRotate90',
    'Resize',
    'YOLOXHSVRandomAug',
]
