from typing import TYPE_CHECKING

from ddetr.utils.lazy import lazy_names

from .curves import draw_curves

if TYPE_CHECKING:
    from .local_visualizer import DetLocalVisualizer

__all__ = ['DetLocalVisualizer', 'draw_curves']

__getattr__ = lazy_names(
    __name__, {'local_visualizer': ('DetLocalVisualizer',)}
)  # mmengine's imports matplotlib
