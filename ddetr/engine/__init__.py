from . import compat  # noqa: F401 (from here on mmengine reads weight files through `read_checkpoint` only)
from .checkpoint import read_checkpoint
from .hooks import DetVisualizationHook
from .runner import DetRunner, build_runner

__all__ = [
    'DetRunner',
    'DetVisualizationHook',
    'build_runner',
    'read_checkpoint',
]
