from .black_box_hook import BlackBoxHook
from .checkpoint_hook import CheckpointHook
from .early_stopping_hook import EarlyStoppingHook
from .ema_hook import EMAHook
from .mode_switch_hook import YOLOXModeSwitchHook
from .training_page_hook import TrainingPageHook
from .trim_memory_hook import TrimMemoryHook
from .visualization_hook import DetVisualizationHook

__all__ = [
    'BlackBoxHook',
    'CheckpointHook',
    'DetVisualizationHook',
    'EMAHook',
    'EarlyStoppingHook',
    'TrainingPageHook',
    'TrimMemoryHook',
    'YOLOXModeSwitchHook',
]
