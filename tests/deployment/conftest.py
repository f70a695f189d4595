"""Small detectors of every kind, and what they are exported to."""

import os
import pickle
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from filelock import FileLock

from ddetr.apis.exporting import proof_images
from ddetr.apis.inference import prepare_image
from ddetr.deployment import Bounds, Exported, ExportOptions, export_detector
from ddetr.engine.config import load_config
from ddetr.registry import MODELS
from tests.conftest import ROOT

MODEL_FILES = {
    'two-stage': 'deformable-detr_tiny',
    'distinct': 'deformable-detr_tiny',
    'plain': 'deformable-detr_tiny',
    'denoising': 'dino_tiny',
    'one-map': 'detr_tiny',
    'regions': 'faster-rcnn_tiny',
}


class Case(NamedTuple):
    """An exported detector."""

    detector: Any
    exported: Exported


def small_detector(kind: str) -> Any:
    """A detector with random weights whose scores lie on both sides of the proof's lowest."""
    data = ROOT / 'configs/_base_/datasets/shapes_detection.py'
    cfg = load_config(data)
    if kind == 'stranger':
        cfg.model = load_config(ROOT / 'tests/own_detector/grid_shapes.py').model
    else:
        cfg.model = load_config(ROOT / f'configs/_base_/models/{MODEL_FILES[kind]}.py').model
        shrink(cfg.model, kind)
    torch.manual_seed(0)
    detector = MODELS.build(cfg.model)
    spread(detector)
    detector.cfg, detector.dataset_meta = cfg, {'classes': list('abcdef')}
    return detector.eval()


def shrink(model: Any, kind: str) -> None:
    """Fewer layers, so that tracing takes seconds."""
    if kind == 'plain':
        model.update(as_two_stage=False, with_box_refine=False)
    if kind == 'distinct':
        model.distinct_proposals = 0.7
    if kind == 'regions':
        return
    model.backbone.update(num_stages=1, out_indices=(0,))
    model.neck.update(in_channels=[64], num_outs=1 if kind == 'one-map' else 2)
    model.encoder.num_layers, model.decoder.num_layers = 1, 2
    if kind != 'one-map':
        model.num_feature_levels = 2


@torch.no_grad()
def spread(detector: torch.nn.Module) -> None:
    """Random weights in place of those that training starts from, which make all boxes and scores alike."""
    for name, parameter in detector.named_parameters():
        if 'branches' in name or 'fc_' in name or 'classes' in name or 'rpn_' in name:
            prior = parameter.dim() == 1 and bool((parameter == parameter[0]).all())
            parameter.add_(torch.randn_like(parameter) * (2.0 if prior else 0.1))


def images_for(detector: Any) -> list[np.ndarray]:
    """Three built-in images of different sizes, as the test pipeline gives them."""
    detector.cfg.test_dataloader.dataset.data_root = '/nowhere'
    return [prepare_image(detector, image)['inputs'][0].numpy() for image in proof_images(detector, ())]


@pytest.fixture(scope='session')
def export_case(tmp_path_factory):
    """A function (kind, target, options) -> `Case`; each is exported once, by whichever process of pytest is first."""
    processes = os.environ.get('PYTEST_XDIST_WORKER_COUNT', '1')
    base = tmp_path_factory.getbasetemp()
    folder = (base if processes == '1' else base.parent) / 'exported'
    folder.mkdir(exist_ok=True)

    @cache
    def make(kind: str, target: str = 'onnx', options: ExportOptions = ExportOptions()) -> Case:  # noqa: B008
        suffix = '.onnx' if target == 'onnx' else '.pt2'
        path = folder / f'{target}-{kind}-{"-".join(map(str, options))}{suffix}'
        detector, record = small_detector(kind), path.with_suffix('.pickle')
        with FileLock(path.with_suffix('.lock')):
            if not record.exists():
                bounds = Bounds(min_score=0.01) if kind == 'stranger' else Bounds()
                exported = export_detector(detector, target, path, options, images_for(detector), bounds)
                record.write_bytes(pickle.dumps(exported))
        return Case(detector, pickle.loads(record.read_bytes()))

    return make
