from ddetr.weights import pretrained  # noqa: F401 (replaces mmengine's checkpoint reader)

from . import backbones, detectors, heads, layers, losses, necks, set_prediction, task_modules
from .averaging import ExpMomentumEMA
from .data_preprocessor import DetDataPreprocessor

__all__ = [
    'DetDataPreprocessor',
    'ExpMomentumEMA',
    'backbones',
    'detectors',
    'heads',
    'layers',
    'losses',
    'necks',
    'set_prediction',
    'task_modules',
]
