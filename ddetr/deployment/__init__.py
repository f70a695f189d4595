"""Export of detectors to other runtimes, with proof, and running what was exported.

`targets/` has one module per format and `runtimes/` one per runtime. Neither knows a detector: all they ask of it is
`BaseDetector.detect`.
"""

from .exporting import Exported, export_detector
from .info import ExportInfo
from .options import ExportOptions
from .proof import Bounds, Proof
from .runtimes import is_exported, load
from .runtimes.arrays import DetectionArrays

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
