"""An exported detector of five nodes, whose detections can be worked out by hand."""

from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor, nn

from ddetr.datasets.shapes import SHAPE_CLASSES
from ddetr.deployment import ExportInfo
from ddetr.deployment.targets import onnx as target

PARTS = np.float32(
    [[0, 0, 0.5, 0.5], [0.25, 0.25, 0.75, 1], [0.5, 0, 1, 0.5]]
)  # of the image, x1 y1 x2 y2, by class
INFO = ExportInfo(
    detector='Toy', target='onnx', classes=list(SHAPE_CLASSES), preprocessing='outside', mean=[120.0, 115.0, 105.0],
    std=[60.0, 55.0, 50.0], bgr_to_rgb=True, pad_value=0.0, pad_size_divisor=1,
    test_pipeline=[
        {'type': 'LoadImageFromFile'}, {'type': 'Resize', 'scale': [128, 128], 'keep_ratio': True},
        {'type': 'LoadAnnotations', 'with_bbox': True}, {'type': 'PackDetInputs'},
    ],
    batch=None, height=None, width=None, multiple_of=1, opset=18, precision='fp32', op='gridsample', proof={},
    ddetr_version='0',
)  # fmt: skip


def write_toy(path: Path, info: ExportInfo = INFO) -> Path:
    """Write a detector that finds each of three classes once: its score is the sigmoid of a channel's mean."""
    constants = {
        'parts': PARTS,
        'three': np.int64([3]),
        'flat': np.int64([0, 3]),
        'whwh': np.int64([1, 0, 1, 0]),
    }
    nodes = [
        helper.make_node('GlobalAveragePool', ['images'], ['means']),
        helper.make_node('Reshape', ['means', 'flat'], ['logits']),
        helper.make_node('Sigmoid', ['logits'], ['unsorted']),
        helper.make_node('TopK', ['unsorted', 'three'], ['scores', 'labels'], axis=1),
        helper.make_node('Gather', ['parts', 'labels'], ['relative']),  # (B, 3, 4)
        helper.make_node('Cast', ['sizes_hw'], ['sizes'], to=TensorProto.FLOAT),
        helper.make_node('Gather', ['sizes', 'whwh'], ['sides'], axis=1),  # (B, 4)
        helper.make_node('Reshape', ['sides', 'rows'], ['sides3']),  # (B, 1, 4)
        helper.make_node('Mul', ['relative', 'sides3'], ['boxes']),
    ]
    constants['rows'] = np.int64([-1, 1, 4])
    make = helper.make_tensor_value_info
    inputs = [
        make('images', TensorProto.FLOAT, ['b', 3, 'h', 'w']),
        make('sizes_hw', TensorProto.INT64, ['b', 2]),
    ]
    outputs = [
        make('boxes', TensorProto.FLOAT, ['b', 3, 4]),
        make('scores', TensorProto.FLOAT, ['b', 3]),
        make('labels', TensorProto.INT64, ['b', 3]),
    ]
    weights = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, 'toy', inputs, outputs, weights)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)], ir_version=10), path)
    target.annotate(path, info)
    return path


def expected(resized_bgr: np.ndarray, size_wh: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Boxes (3, 4) in pixels of an image of `size_wh`, scores and labels, from its resized pixels (h, w, 3)."""
    mean, std = np.array(INFO.mean), np.array(INFO.std)
    logits = ((resized_bgr[..., ::-1] - mean) / std).mean((0, 1))
    scores = 1 / (1 + np.exp(-logits))
    labels = np.argsort(-scores, kind='stable')
    return PARTS[labels] * np.tile(size_wh, 2), scores[labels], labels


class Toy(nn.Module):
    """The same detector in PyTorch."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer('parts', torch.from_numpy(PARTS))

    def forward(self, images: Tensor, sizes_hw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(B, 3, H, W) and (B, 2) -> boxes (B, 3, 4), scores (B, 3), labels (B, 3)."""
        scores, labels = images.mean((2, 3)).sigmoid().topk(3, dim=1)
        return self.parts[labels] * sizes_hw.flip(1).repeat(1, 2).float()[:, None], scores, labels
