from ddetr.weights import read_checkpoint

from . import compat, loops, optim_wrapper  # noqa: F401 (register)
from .hooks import (
    BlackBoxHook,
    CheckpointHook,
    DetVisualizationHook,
    EarlyStoppingHook,
    EMAHook,
    TrainingPageHook,
)
from .log_processor import LogProcessor
from .runner import DetRunner, build_runner

__all__ = [
    'BlackBoxHook',
    'CheckpointHook',
    'DetRunner',
    'DetVisualizationHook',
    'EMAHook',
    'EarlyStoppingHook',
    'LogProcessor',
    'TrainingPageHook',
    'build_runner',
    'read_checkpoint',
]
