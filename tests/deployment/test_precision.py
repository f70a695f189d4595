"""Files in half precision and 8-bit integers, run by onnxruntime; and TensorRT's absence."""

import shutil
import sys

import numpy as np
import onnx
import pytest

from ddetr.apis.exporting import ExportCommand, calibration_images, export_model
from ddetr.datasets.shapes import ShapesRecipe, make_shapes
from ddetr.deployment import Bounds, ExportOptions, export_detector, load
from ddetr.deployment.precision import check_precision
from ddetr.deployment.targets import onnx as onnx_target
from ddetr.utils.errors import InputError

from .conftest import images_for


@pytest.fixture
def _traced(export_case, monkeypatch):
    """Take the file that was traced already: a second trace costs ten seconds and gives the same."""
    source = export_case('plain').exported.path
    monkeypatch.setattr(onnx_target, 'write', lambda *args: shutil.copy(source, args[-1]))


def export(export_case, folder, precision, bounds):
    detector = export_case('plain').detector
    images, options = images_for(detector), ExportOptions(precision=precision)
    path = folder / f'{precision}.onnx'
    return export_detector(detector, 'onnx', path, options, images, bounds, None, images)


@pytest.mark.usefixtures('_traced')
def test_half_precision_has_convolutions_in_float16_and_boxes_in_float32(export_case, tmp_path):
    exported = export(export_case, tmp_path, 'fp16', Bounds(0.02, 2.0))
    assert exported.info.precision == load(exported.path).info.precision == 'fp16'
    assert 0 < exported.proof.score < 0.02
    size = export_case('plain').exported.path.stat().st_size
    assert exported.path.stat().st_size < 0.7 * size
    graph = onnx.load(exported.path).graph
    kinds = {weight.name: weight.data_type for weight in graph.initializer}
    convolutions = [node for node in graph.node if node.op_type == 'Conv']
    assert {kinds[node.input[1]] for node in convolutions} == {onnx.TensorProto.FLOAT16}
    boxes = next(value for value in graph.output if value.name == 'boxes')
    assert boxes.type.tensor_type.elem_type == onnx.TensorProto.FLOAT


@pytest.mark.usefixtures('_traced')
def test_int8_has_quantised_layers_with_ranges_of_the_images(export_case, tmp_path):
    exported = export(export_case, tmp_path, 'int8', Bounds(np.inf, np.inf))
    model = onnx.load(exported.path)
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count('QuantizeLinear') > 10
    weights = {w.name: w.data_type for w in model.graph.initializer}
    assert onnx.TensorProto.INT8 in weights.values()
    assert exported.path.stat().st_size < 0.5 * export_case('plain').exported.path.stat().st_size
    assert 0 < exported.proof.score < 0.2
    assert exported.info.precision == 'int8'
    with pytest.raises(InputError, match=r'does not match PyTorch: .* to compare only AP, add --data DIR'):
        export(export_case, tmp_path, 'int8', Bounds(1e-4, np.inf))


def test_int8_needs_data_and_images(export_case, tmp_path):
    options = ExportOptions(precision='int8')
    with pytest.raises(InputError, match=r'is verified by AP: pass a dataset with --data'):
        export_model(None, 'model.pth', ExportCommand('onnx', options=options))
    make_shapes(tmp_path / 'shapes', ShapesRecipe(num_train=8, num_val=1, size=64))
    detector = export_case('plain').detector
    train = detector.cfg.pop('train_dataloader')
    try:
        with pytest.raises(InputError, match=r'pass its training config, or a folder of images'):
            calibration_images(detector, ExportCommand('onnx'))
    finally:
        detector.cfg.train_dataloader = train
    folder = str(tmp_path / 'shapes/train2017')
    found = calibration_images(detector, ExportCommand('onnx', calibration=folder))
    assert len(found) == 8
    assert found[0].shape[0] == 3
    assert max(found[0].shape) == 128


@pytest.mark.parametrize(
    ('target', 'precision', 'message'),
    [
        ('onnx', 'int4', '--precision int4: choose one of fp32, fp16, int8'),
        ('aoti', 'int8', 'only onnx and openvino support it, aoti does not'),
    ],
)
def test_unsupported_precisions_raise(target, precision, message):
    with pytest.raises(InputError, match=message):
        check_precision(target, precision)


def test_missing_tensorrt_raises_with_instructions(export_case, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, 'tensorrt', None)
    with pytest.raises(InputError, match=r'tensorrt is not installed.*--to onnx --op tensorrt'):
        export_detector(
            export_case('plain').detector, 'tensorrt', tmp_path / 'a.engine', ExportOptions(), [], Bounds()
        )
    assert not list(tmp_path.iterdir())
