"""Options of an export."""

from typing import NamedTuple

OPS = ('gridsample', 'gather', 'node', 'tensorrt')
SINGLE_NODES = ('node', 'tensorrt')  # custom nodes that no Python runtime has a kernel for
OPSETS = range(18, 23)


class ExportOptions(NamedTuple):
    """Options of an export."""

    batch: int | None = None  # fixed batch size; None for dynamic, if detector and target support it
    height: int | None = None  # fixed height in pixels; None for dynamic
    width: int | None = None
    preprocessing: str = 'outside'  # 'inside': uint8 images in, normalised in the graph
    opset: int = 18  # ONNX opset, at least 18
    op: str = 'gridsample'  # one of OPS: representation of deformable attention in ONNX
    precision: str = 'fp32'  # one of PRECISIONS
