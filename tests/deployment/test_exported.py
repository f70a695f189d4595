"""Exported files behind the commands and the inferencer: without config, and without the detector's code."""

import json
import shutil
import sys
from dataclasses import replace

import cv2
import numpy as np
import onnx
import pytest
import torch

from ddetr.apis import (
    DetInferencer,
    EvalOptions,
    Failure,
    PredictOptions,
    Tiling,
    evaluate_detector,
    inference_detector,
    predict_files,
)  # fmt: skip
from ddetr.apis.exported import detect
from ddetr.apis.exported_test import exported_test_config
from ddetr.datasets.shapes import SHAPE_CLASSES
from ddetr.deployment import DetectionArrays
from ddetr.deployment.targets import onnx as onnx_target
from ddetr.structures import DetDataSample
from ddetr.utils.errors import InputError
from tests.conftest import ROOT

from .toy import INFO, expected, write_toy

CONFIG = ROOT / 'tests/configs/tiny_shapes.py'


@pytest.fixture(scope='module')
def file(tmp_path_factory):
    return write_toy(tmp_path_factory.mktemp('exported') / 'model.onnx')


@pytest.fixture(scope='module')
def detector(file):
    return DetInferencer(file)


def _images():
    numbers = np.random.default_rng(0)
    sizes = [(64, 64), (48, 90), (64, 64), (300, 200)]
    return [numbers.integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]


def test_file_defines_pipeline_normalisation_and_box_rescaling(detector):
    """The toy's detections are worked out from the pixels, one image at a time."""
    images = _images()
    results = list(detector.predict(images, batch_size=2))
    for image, result in zip(images, results, strict=True):
        height, width = image.shape[:2]
        scale = 128 / max(height, width)
        size = int(width * scale + 0.5), int(height * scale + 0.5)
        resized = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)
        boxes, scores, labels = expected(resized, (width, height))
        found = result.sample.pred_instances
        np.testing.assert_allclose(found.bboxes, boxes, atol=1e-4)
        np.testing.assert_allclose(found.scores, scores, atol=1e-6)
        assert found.labels.tolist() == labels.tolist()


def test_exported_detector_gives_the_same_detections_as_pytorch(export_case):
    case = export_case('two-stage')
    for image, result in zip(_images(), DetInferencer(case.exported.path).predict(_images(), 2), strict=True):
        truth, found = inference_detector(case.detector, image).pred_instances, result.sample.pred_instances
        torch.testing.assert_close(found.scores, truth.scores, atol=1e-5, rtol=0)
        torch.testing.assert_close(found.bboxes, truth.bboxes, atol=0.05, rtol=0)
        assert torch.equal(found.labels, truth.labels)


def test_the_commands_never_import_the_detectors_code(file, tiny_shapes, tmp_path, run):
    image = tiny_shapes / 'val2017' / '000000000001.jpg'
    script = (
        'import runpy, sys\n'
        f'sys.argv = ["image_demo.py", {str(image)!r}, {str(file)!r}, "--out-dir", {str(tmp_path / "demo")!r}, '
        '"--score-thr", "0"]\n'
        'runpy.run_path("demo/image_demo.py", run_name="__main__")\n'
        f'sys.argv = ["test.py", {str(file)!r}, "--data", {str(tiny_shapes)!r}, "--work-dir", '
        f'{str(tmp_path)!r}, "--out", {str(tmp_path / "found.json")!r}, "--show-dir", {str(tmp_path / "shown")!r}]\n'
        'runpy.run_path("tools/test.py", run_name="__main__")\n'
        'print("imported:", [name for name in sys.modules if name.startswith("ddetr.models")])\n'
    )
    output = run(sys.executable, '-c', script)
    assert output.strip().endswith('imported: []'), output[-2000:]
    assert 'Average Precision' in output
    truth = DetInferencer(file)(image).pred_instances
    written = json.loads((tmp_path / 'demo/000000000001.jpg.json').read_text())['detections']
    np.testing.assert_allclose([row['bbox'] for row in written], truth.bboxes, atol=1e-3)
    rows = [row for row in json.loads((tmp_path / 'found.json').read_text()) if row['image_id'] == 1]
    np.testing.assert_allclose([row['score'] for row in rows], truth.scores, atol=1e-6)
    assert len(list((tmp_path / 'shown').iterdir())) == 4


def test_config_provides_only_the_test_set(file):
    cfg = exported_test_config(file, CONFIG, None)
    assert cfg.test_dataloader.dataset.ann_file == 'annotations/instances_val2017.json'
    assert cfg.test_dataloader.dataset.metainfo.classes == SHAPE_CLASSES
    types = [step['type'] for step in cfg.test_dataloader.dataset.pipeline]
    assert types == ['LoadImageFromFile', 'Resize', 'LoadAnnotations', 'PackDetInputs']
    assert 'backbone' not in cfg.model


def test_files_of_all_formats_videos_and_tiles(detector, file, tiny_shapes, tmp_path):
    options = PredictOptions(str(tmp_path), ('picture', 'json', 'coco', 'yolo', 'csv'), 0.0, ['square'], 2)
    assert predict_files(detector, tiny_shapes / 'val2017', options).images == 4
    rows = json.loads((tmp_path / 'detections.coco.json').read_text())['annotations']
    assert {row['category_id'] for row in rows} == {SHAPE_CLASSES.index('square') + 1}
    writer = cv2.VideoWriter(str(tmp_path / 'in.avi'), cv2.VideoWriter.fourcc(*'MJPG'), 12, (96, 64))
    for _ in range(3):
        writer.write(np.full((64, 96, 3), 90, np.uint8))
    writer.release()
    assert (
        predict_files(detector, tmp_path / 'in.avi', options._replace(out_dir=str(tmp_path / 'v'))).frames
        == 3
    )
    pytest.importorskip('supervision')
    tiled = DetInferencer(file, tiling=Tiling(64, 16, min_score=0.0))
    assert len(tiled(_images()[3]).pred_instances) > 0


class Stub:
    """A runtime of fixed size that finds one box in each image, and has one place to spare."""

    info = replace(INFO, height=40, width=40)

    def __call__(self, images, sizes_hw):
        assert images.shape[2:] == (40, 40)
        self.sizes_hw = sizes_hw
        boxes = np.tile(np.float32([2, 4, 20, 10]), (len(images), 2, 1))
        return DetectionArrays(
            boxes, np.float32([[0.9, 0]] * len(images)), np.zeros((len(images), 2), np.int64)
        )


def test_boxes_of_images_larger_than_the_fixed_size_are_in_image_pixels():
    samples = [DetDataSample(metainfo={'scale_factor': (2.0, 2.0)}) for _ in range(2)]
    images = [torch.zeros(3, 40, 80, dtype=torch.uint8), torch.zeros(3, 30, 40, dtype=torch.uint8)]
    stub = Stub()
    found = [sample.pred_instances for sample in detect(stub, images, samples)]
    assert stub.sizes_hw.tolist() == [[20, 40], [30, 40]]
    assert [len(instances) for instances in found] == [1, 1]
    assert found[0].bboxes.tolist() == [[2, 4, 20, 10]]  # half as large in the runtime, twice by the pipeline
    assert found[1].bboxes.tolist() == [[1, 2, 10, 5]]


def test_image_with_too_few_tokens_is_skipped_with_a_reason(export_case, tmp_path):
    case, path = export_case('two-stage'), tmp_path / 'unresized.onnx'
    shutil.copy(case.exported.path, path)
    steps = [{'type': 'LoadImageFromFile'}, {'type': 'PackDetInputs'}]
    onnx_target.annotate(path, replace(case.exported.info, test_pipeline=steps, pad_size_divisor=1))
    small, large = DetInferencer(path).predict([np.zeros((8, 8, 3), np.uint8), _images()[0]])
    assert isinstance(small, Failure)
    assert 'fails on images of 8 x 8 pixels' in str(small.error)
    assert len(large.sample.pred_instances) > 0


def test_files_without_a_detector_raise(file, tmp_path):
    (tmp_path / 'cut.onnx').write_bytes(file.read_bytes()[:300])
    with pytest.raises(InputError, match=r'cut\.onnx cannot be read by onnxruntime'):
        DetInferencer(tmp_path / 'cut.onnx')
    model = onnx.load(file)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / 'other.onnx')
    with pytest.raises(InputError, match=r'other\.onnx has no metadata .* not written by `ddetr export`'):
        DetInferencer(tmp_path / 'other.onnx')
    with pytest.raises(InputError, match=r'absent\.onnx does not exist'):
        DetInferencer(tmp_path / 'absent.onnx')
    strange = write_toy(
        tmp_path / 'strange.onnx', replace(INFO, test_pipeline=[{'type': 'os.system', 'command': 'false'}])
    )
    with pytest.raises(InputError, match=r"pipeline\.0\.type='os\.system' is not registered"):
        DetInferencer(strange)


def test_missing_runtime_raises(file, monkeypatch):
    monkeypatch.setitem(sys.modules, 'onnxruntime', None)
    with pytest.raises(InputError, match=r'onnxruntime is not installed: pip install "ddetr\[export\]"'):
        DetInferencer(file)


def test_unsupported_options_of_exported_files_raise(file, tiny_shapes, tmp_path):
    with pytest.raises(InputError, match='do not apply'):
        DetInferencer(CONFIG, file)
    with pytest.raises(InputError, match='config, --cfg-options and --allow-partial do not apply'):
        DetInferencer(file, cfg_options={'model.num_queries': 3})
    with pytest.raises(InputError, match='does not specify a dataset: pass --data DIR'):
        evaluate_detector(None, file)
    with pytest.raises(InputError, match='--launcher and --allow-partial do not apply'):
        evaluate_detector(None, file, EvalOptions(launcher='pytorch'))
    other = write_toy(tmp_path / 'other.onnx', replace(INFO, classes=list('abcdef')))
    with pytest.raises(InputError, match=r'detects .*, but .* has the classes .*circle'):
        evaluate_detector(None, other, EvalOptions(data=str(tiny_shapes)))
