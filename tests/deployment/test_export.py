"""Exported files run in their runtimes, at other sizes than they were traced at, and say what they are."""

import json
import os
import shutil
import sys

import numpy as np
import onnx
import pytest
import torch

from ddetr.deployment import Bounds, ExportInfo, ExportOptions, export_detector, load
from ddetr.deployment.preparing import prepare_batch
from ddetr.deployment.proof import Found, compare, detect, prove, unstable
from ddetr.deployment.targets import onnx as onnx_target
from ddetr.registry import MODELS
from ddetr.utils.errors import InputError
from tests.conftest import run_command

from .conftest import images_for, small_detector

TIGHT = Bounds(score=5e-6, box_px=0.05)  # random weights: scores that hang on large sums
LOOSE = Bounds(score=5e-5, box_px=0.05)  # and without norms between the layers


@pytest.mark.parametrize('kind', ['two-stage', 'distinct', 'denoising', 'one-map', 'stranger', 'regions'])
def test_onnxruntime_gives_the_same_detections_as_pytorch(export_case, kind):
    """The proof has compared one image alone and two together; other sizes and a larger batch are compared here."""
    case, bounds = export_case(kind), LOOSE if kind == 'regions' else TIGHT
    assert case.exported.proof.detections > 10
    assert case.exported.proof.undecided == 0
    assert len(case.exported.proof.shapes) >= 2
    assert case.exported.proof.score <= bounds.score
    assert case.exported.proof.box_px <= bounds.box_px
    runtime = load(case.exported.path, threads=1)
    draws = np.random.default_rng(1)
    images = [
        draws.integers(0, 256, (3, *size), dtype=np.uint8) for size in ((112, 176), (160, 96), (96, 96))
    ]
    arrays, sizes = prepare_batch(images, runtime.info)
    outputs = runtime(arrays, sizes)
    assert outputs.boxes.dtype == outputs.scores.dtype == np.float32
    assert outputs.labels.dtype == np.int64
    assert (np.diff(outputs.scores, axis=1) <= 0).all()
    for i, expected in enumerate(detect(case.detector, runtime, images, arrays.shape[2:])):
        np.testing.assert_allclose(
            outputs.scores[i, : len(expected.scores)], expected.scores, atol=bounds.score
        )
        difference = compare(expected, Found(*(field[i] for field in outputs)), bounds)
        assert not difference.exceeds(bounds), difference


def test_file_metadata_is_complete(export_case):
    case = export_case('two-stage')
    model = onnx.load(case.exported.path)
    (entry,) = model.metadata_props
    info = ExportInfo.from_json(entry.value)
    assert info == case.exported.info == load(case.exported.path).info
    assert info.detector == type(case.detector).__name__
    assert info.classes == list('abcdef')
    assert info.test_pipeline[0]['type'] == 'LoadImageFromFile'
    assert info.proof['detections'] == case.exported.proof.detections
    names = [value.name for value in (*model.graph.input, *model.graph.output)]
    assert names == ['images', 'sizes_hw', 'boxes', 'scores', 'labels']
    dims = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert dims == [0, 3, 0, 0]  # batch, height and width are symbolic


def test_export_with_one_broken_weight_raises_and_leaves_no_file(export_case, tmp_path, monkeypatch):
    case = export_case('two-stage')
    detector = case.detector

    def write_broken(*args):
        model = onnx.load(case.exported.path)
        names = {w.name: w for w in model.graph.initializer}
        weight = next(names[name] for name in names if name.endswith('sampling_offsets.bias'))
        values = onnx.numpy_helper.to_array(weight).copy()
        values[3] += 0.5  # half a pixel of one point of one head
        weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
        onnx.save(model, args[-1])

    monkeypatch.setattr(onnx_target, 'write', write_broken)
    with pytest.raises(InputError, match='does not match PyTorch'):
        export_detector(
            detector, 'onnx', tmp_path / 'broken.onnx', ExportOptions(), images_for(detector), Bounds()
        )
    assert list(tmp_path.iterdir()) == []


@torch.no_grad()
def test_tied_proposals_are_distinguished_from_errors(export_case):
    """A detector whose proposals all score the same hangs on roundings, one with spread scores does not."""
    runtime = load(export_case('two-stage').exported.path, threads=1)
    detector = small_detector('two-stage')
    images = images_for(detector)[:1]
    for tied in (False, True):
        if tied:
            detector.bbox_head.cls_branches[-1].weight.zero_()
        expected = detect(detector, runtime, images, (128, 128))
        assert unstable(detector, runtime, images, (128, 128), expected, Bounds()) == [tied]


def test_images_without_detections_cannot_verify_an_export(export_case):
    case = export_case('two-stage')
    runtime = load(case.exported.path, threads=1)
    with pytest.raises(InputError, match='no detection in these images scores above'):
        prove(case.detector, runtime, [images_for(case.detector)[:1]], Bounds(min_score=0.999))


def test_preprocessing_inside_and_fixed_sizes(export_case):
    options = ExportOptions(batch=2, height=128, width=160, preprocessing='inside')
    case = export_case('plain', 'onnx', options)
    runtime = load(case.exported.path, threads=1)
    dims = [d.dim_value for d in onnx.load(case.exported.path).graph.input[0].type.tensor_type.shape.dim]
    assert dims == [2, 3, 128, 160]
    images = np.zeros((3, 3, 128, 160), dtype=np.uint8)  # an odd batch is filled up
    assert runtime(images, np.full((3, 2), 100)).scores.shape[0] == 3
    with pytest.raises(InputError, match='height of 128 pixels, got 96'):
        runtime(images[:, :, :96], np.full((3, 2), 90))
    with pytest.raises(InputError, match=r'uint8, got .* float32'):
        runtime(images.astype(np.float32), np.full((3, 2), 100))
    with pytest.raises(InputError, match='sizes_hw has values outside 1 to 128 x 160'):
        runtime(images, np.full((3, 2), 170))


def test_torch_export_is_exact_at_dynamic_sizes(export_case):
    case = export_case('two-stage', 'torch-export')
    assert case.exported.proof[3:5] == (0.0, 0.0)
    assert load(case.exported.path).info.target == 'torch-export'


@pytest.mark.slow
@pytest.mark.skipif(shutil.which(os.environ.get('CXX', 'g++')) is None, reason='there is no C++ compiler')
def test_compiled_package_takes_any_batch_size(export_case):
    """Height and width are fixed to save time; the proof has compared batches of 1 and 2."""
    case = export_case('plain', 'aoti', ExportOptions(height=128, width=160))
    runtime = load(case.exported.path)
    images = [np.random.default_rng(i).integers(0, 256, (3, 128, 160), dtype=np.uint8) for i in range(17)]
    arrays, sizes = prepare_batch(images, runtime.info)
    outputs = runtime(arrays, sizes)
    for i, expected in enumerate(detect(case.detector, runtime, images, (128, 160))):
        difference = compare(expected, Found(*(field[i] for field in outputs)), TIGHT)
        assert not difference.exceeds(TIGHT), difference


def test_runtime_that_answers_for_another_number_of_images_raises(export_case):
    runtime = load(export_case('two-stage').exported.path)
    run = runtime._run
    runtime._run = lambda images, sizes: run(np.repeat(images, 2, 0), np.repeat(sizes, 2, 0))
    with pytest.raises(InputError, match='answers for 2 images when given 1'):
        runtime(np.zeros((1, 3, 128, 160), np.float32), np.array([[128, 160]]))


def test_backbones_with_windows_need_a_fixed_size(tmp_path):
    detector = small_detector('plain')
    options = {'img_size': 64, 'embed_dim': 8, 'depths': (1, 1), 'num_heads': (1, 1), 'window_size': 4}
    detector.backbone = MODELS.build(
        {
            'type': 'TimmBackbone',
            'model_name': 'swin_tiny_patch4_window7_224',
            'out_indices': (1,),
            'options': options,
        }
    )
    with pytest.raises(
        InputError, match=r'swin_tiny_patch4_window7_224 attends in windows.*--height and --width'
    ):
        export_detector(detector, 'onnx', tmp_path / 'a.onnx', ExportOptions(height=64), [], Bounds())


def test_sizes_too_small_for_the_levels_raise(tmp_path):
    detector = small_detector('two-stage')
    options = ExportOptions(height=8, width=8)
    with pytest.raises(InputError, match=r'cannot detect in images of 8 x 8 pixels .*num_queries=20 exceeds'):
        export_detector(detector, 'onnx', tmp_path / 'a.onnx', options, images_for(detector), Bounds())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        ({'opset': 11}, '--opset 11: must be between 18 and 22'),
        ({'batch': 0}, '--batch 0: must be at least 1'),
        ({'op': 'magic'}, '--op magic: choose one of gridsample'),
    ],
)
def test_options_unsupported_by_all_targets_raise(tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        export_detector(
            small_detector('plain'), 'onnx', tmp_path / 'a.onnx', ExportOptions(**change), [], Bounds()
        )


def test_other_models_and_names(tmp_path, monkeypatch):
    with pytest.raises(InputError, match='Linear cannot be exported'):
        export_detector(torch.nn.Linear(2, 2), 'onnx', tmp_path / 'a.onnx', ExportOptions(), [], Bounds())
    detector = small_detector('plain')
    with pytest.raises(InputError, match='the suffix of onnx files must be'):
        export_detector(detector, 'onnx', tmp_path / 'a.pt', ExportOptions(), [], Bounds())
    monkeypatch.setitem(sys.modules, 'onnxscript', None)
    with pytest.raises(InputError, match=r'onnxscript is not installed: pip install "ddetr\[export\]"'):
        export_detector(detector, 'onnx', tmp_path / 'a.onnx', ExportOptions(), [], Bounds())
    assert list(tmp_path.iterdir()) == []


def test_files_that_were_not_exported_raise(tmp_path, export_case):
    with pytest.raises(InputError, match='does not exist'):
        load(tmp_path / 'absent.onnx')
    (tmp_path / 'text.onnx').write_text('no model')
    with pytest.raises(InputError, match='cannot be read by onnxruntime'):
        load(tmp_path / 'text.onnx')
    with pytest.raises(InputError, match='the suffix of an exported detector must be'):
        load(tmp_path / 'model.bin')
    model = onnx.load(export_case('two-stage').exported.path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / 'bare.onnx')
    with pytest.raises(InputError, match='was not written by `ddetr export`'):
        load(tmp_path / 'bare.onnx')


def test_metadata_of_another_version_or_format_raises():
    info = json.loads(ExportInfo(*['x'] * 2, [], 'outside', [], [], False, 0.0, 1, [], None, None, None, 1, None,
                                 'fp32', 'kernel', {}, '0').to_json())  # fmt: skip
    assert ExportInfo.from_json(json.dumps(info)).batch is None
    for change, message in (
        ({'format_version': 9}, 'format_version=9'),
        ({'classes': 3}, 'classes=3, which is not of type list'),
        ({'batch': 'two'}, "batch='two', which is not of type int"),
    ):
        with pytest.raises(ValueError, match=message):
            ExportInfo.from_json(json.dumps({**info, **change}))
    with pytest.raises(ValueError, match='lacks classes'):
        ExportInfo.from_json(json.dumps({key: value for key, value in info.items() if key != 'classes'}))


def test_the_command_exports_a_training_checkpoint_with_ap_side_by_side(tiny_run, tmp_path):
    out = tmp_path / 'model.pt2'
    output = run_command(
        sys.executable, 'tools/deployment/export.py', tiny_run.config, tiny_run.checkpoint, '--to', 'torch-export',
        '--out', out, '--data', tiny_run.data_root, '--min-score', '0',
    )  # fmt: skip
    assert 'proof: 3 images in batches of 1x3x' in output
    (line,) = [line for line in output.splitlines() if line.startswith('coco/bbox_mAP ')]
    assert line.split()[1] == line.split()[2]
    assert out.exists()
    output = run_command(
        sys.executable,
        'tools/deployment/export.py',
        tiny_run.config,
        tiny_run.checkpoint,
        '--to',
        'onx',
        expect=2,
    )
    assert '--to onx: unknown target; did you mean onnx?' in output
