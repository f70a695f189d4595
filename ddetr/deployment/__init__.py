"""Export of detectors to other runtimes, verification of the exports, and inference with them.

`targets/` has one module per format and `runtimes/` one per runtime. Neither depends on a specific detector: they only
use `BaseDetector.detect`.
"""

from typing import TYPE_CHECKING

from ddetr.utils.lazy import lazy_names

from .info import ExportInfo
from .options import ExportOptions
from .runtimes import is_exported, load
from .runtimes.arrays import DetectionArrays

if TYPE_CHECKING:
    from .exporting import Exported, export_detector
    from .proof import Bounds, Proof

__all__ = [
    'Bounds',
    'DetectionArrays',
    'ExportInfo',
    'ExportOptions',
    'Exported',
    'Proof',
    'export_detector',
    'is_exported',
    'load',
]

# not needed to run exported files, and mmengine.model takes a second to import
__getattr__ = lazy_names(
    __name__, {'exporting': ('Exported', 'export_detector'), 'proof': ('Bounds', 'Proof')}
)
