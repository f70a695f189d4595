"""Export of detectors to other runtimes, with proof, and running what was exported.

`targets/` has one module per format and `runtimes/` one per runtime. Neither knows a detector: all they ask of it is
`BaseDetector.detect`.
"""

from .info import ExportInfo
from .runtimes import is_exported, load
from .runtimes.arrays import DetectionArrays

__all__ = ['DetectionArrays', 'ExportInfo', 'is_exported', 'load']
