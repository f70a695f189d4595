from .curves import draw_curves
from .local_visualizer import DetLocalVisualizer

__all__ = ['DetLocalVisualizer', 'draw_curves']
