"""OpenVINO models, held against PyTorch and onnxruntime."""

import shutil
import sys

import numpy as np
import pytest

from ddetr.apis import DetInferencer, inference_detector
from ddetr.deployment import load
from ddetr.deployment.precision import convert
from ddetr.deployment.targets import openvino as target
from ddetr.utils.errors import InputError

openvino = pytest.importorskip('openvino')


@pytest.fixture(scope='module')
def model(export_case, tmp_path_factory):
    """The ONNX file of a detector as an OpenVINO model."""
    case = export_case('two-stage')
    path = tmp_path_factory.mktemp('openvino') / 'model.xml'
    target.from_onnx(case.exported.path, path)
    target.annotate(path, case.exported.info)
    return path


def copy_of(model, folder):
    for suffix in ('.xml', '.bin'):
        shutil.copy(model.with_suffix(suffix), folder / f'copy{suffix}')
    return folder / 'copy.xml'


def test_openvino_gives_the_same_detections_as_pytorch_at_any_size(export_case, model):
    case, detector = export_case('two-stage'), DetInferencer(model)
    assert detector.model.info == case.exported.info
    numbers = np.random.default_rng(3)
    images = [numbers.integers(0, 256, (*size, 3), dtype=np.uint8) for size in ((64, 64), (90, 60), (64, 64))]
    for image, result in zip(images, detector.predict(images, batch_size=2), strict=True):
        expected = inference_detector(case.detector, image).pred_instances
        found = result.sample.pred_instances
        np.testing.assert_allclose(found.scores, expected.scores, atol=1e-5)
        np.testing.assert_allclose(found.bboxes, expected.bboxes, atol=0.05)
        assert found.labels.tolist() == expected.labels.tolist()


def test_weights_in_half_precision_are_half_as_large_and_detect_nearly_the_same(model, tmp_path):
    half = copy_of(model, tmp_path)
    convert(half, 'openvino', 'fp16', ())
    target.annotate(half, load(model).info)
    assert half.with_suffix('.bin').stat().st_size < 0.6 * model.with_suffix('.bin').stat().st_size
    inputs = np.random.default_rng(0).normal(size=(1, 3, 96, 128)).astype(np.float32), np.array([[96, 128]])
    found, expected = load(half)(*inputs), load(model)(*inputs)
    assert 0 < np.abs(found.scores - expected.scores).max() < 0.02


def test_damaged_models_raise(model, tmp_path):
    copy = copy_of(model, tmp_path)
    text = copy.read_text()
    copy.write_text(text[: len(text) // 2])
    with pytest.raises(InputError, match=r'copy\.xml cannot be read by OpenVINO'):
        load(copy)
    copy.write_text(text)
    copy.with_suffix('.bin').write_bytes(copy.with_suffix('.bin').read_bytes()[:1000])
    with pytest.raises(InputError, match=r'copy\.xml cannot be (read|compiled)'):
        load(copy)
    copy.with_suffix('.bin').unlink()
    with pytest.raises(
        InputError, match=r'copy\.bin does not exist: an OpenVINO model needs a \.xml file and'
    ):
        load(copy)
    openvino.save_model(openvino.convert_model(_other_onnx(tmp_path)), tmp_path / 'other.xml')
    with pytest.raises(InputError, match=r'other\.xml has no metadata .* not written by `ddetr export`'):
        load(tmp_path / 'other.xml')


def test_missing_openvino_raises(model, monkeypatch):
    monkeypatch.setitem(sys.modules, 'openvino', None)
    with pytest.raises(InputError, match=r'openvino is not installed: pip install "ddetr\[openvino\]"'):
        load(model)


def _other_onnx(folder):
    import onnx
    from onnx import TensorProto, helper

    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in 'ab']
    graph = helper.make_graph([helper.make_node('Relu', ['a'], ['b'])], 'relu', values[:1], values[1:])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid('', 18)]), folder / 'relu.onnx')
    return folder / 'relu.onnx'
