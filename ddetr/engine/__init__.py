from ddetr.weights import read_checkpoint

from . import compat  # noqa: F401 (registers)
from .hooks import DetVisualizationHook
from .log_processor import LogProcessor
from .runner import DetRunner, build_runner

__all__ = ['DetRunner', 'DetVisualizationHook', 'LogProcessor', 'build_runner', 'read_checkpoint']
