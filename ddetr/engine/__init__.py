from ddetr.weights import read_checkpoint

from . import compat, loops, optim_wrapper  # noqa: F401 (register)
from .hooks import CheckpointHook, DetVisualizationHook, EarlyStoppingHook
from .log_processor import LogProcessor
from .runner import DetRunner, build_runner

__all__ = [
    'CheckpointHook',
    'DetRunner',
    'DetVisualizationHook',
    'EarlyStoppingHook',
    'LogProcessor',
    'build_runner',
    'read_checkpoint',
]
