"""What an export is asked for."""

from typing import NamedTuple

OPS = ('gridsample', 'gather', 'node', 'tensorrt')
SINGLE_NODES = ('node', 'tensorrt')  # of these, which no runtime in Python has a kernel for
OPSETS = range(18, 23)


class ExportOptions(NamedTuple):
    """How a detector is exported."""

    batch: int | None = None  # fixed number of images; None for any, where the detector and the target can
    height: int | None = None  # fixed, in pixels; None for any
    width: int | None = None
    preprocessing: str = 'outside'  # 'inside': uint8 images in, normalised in the graph
    opset: int = 18  # of ONNX, from 18 on
    op: str = 'gridsample'  # of OPS: how deformable attention is written in ONNX
    precision: str = 'fp32'  # of PRECISIONS
