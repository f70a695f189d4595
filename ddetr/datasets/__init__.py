from .coco import COCO_CLASSES, CocoDataset
from .mix import MultiImageMixDataset
from .samplers import AspectRatioBatchSampler, DefaultSampler, InfiniteSampler, ResumableBatchSampler
from .seeded import SeededDataset
from .similar_size import SimilarSizeBatchSampler
from .transforms import FilterAnnotations, LoadAnnotations, LoadImageFromFile, PackDetInputs, RandomCrop

__all__ = [
    'COCO_CLASSES',
    'AspectRatioBatchSampler',
    'CocoDataset',
    'DefaultSampler',
    'FilterAnnotations',
    'InfiniteSampler',
    'LoadAnnotations',
    'LoadImageFromFile',
    'MultiImageMixDataset',
    'PackDetInputs',
    'RandomCrop',
    'ResumableBatchSampler',
    'SeededDataset',
    'SimilarSizeBatchSampler',
]
