from .coco import COCO_CLASSES, CocoDataset
from .samplers import AspectRatioBatchSampler
from .similar_size import SimilarSizeBatchSampler
from .transforms import FilterAnnotations, LoadAnnotations, LoadImageFromFile, PackDetInputs, RandomCrop

__all__ = [
    'COCO_CLASSES',
    'AspectRatioBatchSampler',
    'CocoDataset',
    'FilterAnnotations',
    'LoadAnnotations',
    'LoadImageFromFile',
    'PackDetInputs',
    'RandomCrop',
    'SimilarSizeBatchSampler',
]
