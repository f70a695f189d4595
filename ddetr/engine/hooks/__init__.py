from .checkpoint_hook import CheckpointHook
from .visualization_hook import DetVisualizationHook

__all__ = ['CheckpointHook', 'DetVisualizationHook']
