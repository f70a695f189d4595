from typing import TYPE_CHECKING

from ddetr.utils.lazy import lazy_names

from . import compat  # noqa: F401 (applies the workarounds)

if TYPE_CHECKING:
    from ddetr.weights import read_checkpoint

    from .hooks import (
        BlackBoxHook,
        CheckpointHook,
        DetVisualizationHook,
        EarlyStoppingHook,
        EMAHook,
        TrainingPageHook,
        TrimMemoryHook,
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
    'TrimMemoryHook',
    'build_runner',
    'read_checkpoint',
]

# Importing mmengine's Runner takes a second and is not needed to read configs.
__getattr__ = lazy_names(
    __name__,
    {
        'hooks': (
            'BlackBoxHook',
            'CheckpointHook',
            'DetVisualizationHook',
            'EMAHook',
            'EarlyStoppingHook',
            'TrainingPageHook',
            'TrimMemoryHook',
        ),
        'log_processor': ('LogProcessor',),
        'runner': ('DetRunner', 'build_runner', 'read_checkpoint'),
    },
)
