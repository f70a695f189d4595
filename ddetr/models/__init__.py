from . import backbones, detectors, heads, layers, losses, necks, set_prediction, task_modules
from .data_preprocessor import DetDataPreprocessor

__all__ = [
    'DetDataPreprocessor',
    'backbones',
    'detectors',
    'heads',
    'layers',
    'losses',
    'necks',
    'set_prediction',
    'task_modules',
]
