from ddetr.weights import read_checkpoint

from . import compat  # noqa: F401 (registers)
from .hooks import DetVisualizationHook
from .runner import DetRunner, build_runner

__all__ = ['DetRunner', 'DetVisualizationHook', 'build_runner', 'read_checkpoint']
