from .checkpoint_hook import CheckpointHook
from .early_stopping_hook import EarlyStoppingHook
from .mode_switch_hook import YOLOXModeSwitchHook
from .visualization_hook import DetVisualizationHook

__all__ = ['CheckpointHook', 'DetVisualizationHook', 'EarlyStoppingHook', 'YOLOXModeSwitchHook']
