from .coco import COCO_CLASSES, CocoDataset
from .detection import DetectionDataset
from .mix import MultiImageMixDataset
from .samplers import AspectRatioBatchSampler, DefaultSampler, InfiniteSampler, ResumableBatchSampler
from .seeded import SeededDataset
from .similar_size import SimilarSizeBatchSampler
from .transforms import FilterAnnotations, LoadAnnotations, LoadImageFromFile, PackDetInputs, RandomCrop
from .voc import XMLDataset
from .yolo import YOLODataset

__all__ = [
    'COCO_CLASSES',
    'AspectRatioBatchSampler',
    'CocoDataset',
    'DefaultSampler',
    'DetectionDataset',
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
    'XMLDataset',
    'YOLODataset',
]
