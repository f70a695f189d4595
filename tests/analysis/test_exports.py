"""The table of exports, for cheap configs; docs/deployment.md has it for all."""

import numpy as np
import pytest
import torch

from ddetr.analysis.building import build_detector
from ddetr.analysis.exports import MIN_SCORES, detections, export_config, random_image, spread_weights
from ddetr.deployment import ExportOptions
from ddetr.engine.config import load_config
from ddetr.utils.shipped_configs import find_config

SIZES = [(96, 128), (112, 96), (128, 96)]


@pytest.mark.slow
@pytest.mark.parametrize('name', ['detr_shapes', 'faster-rcnn_shapes'])
def test_quickstart_configs_are_exact_in_onnxruntime(name):
    config, proof, mib, _ = export_config(find_config(name), 'onnx', SIZES, ExportOptions())
    assert (config, proof.images, proof.undecided) == (name, 3, 0)
    assert proof.detections >= 10 * len(SIZES)
    assert proof.score < 1e-5
    assert proof.box_px < 0.01
    assert 1 < mib < 50


def test_random_weights_are_drawn_until_there_are_detections():
    torch.manual_seed(0)
    detector = build_detector(load_config(find_config('deformable-detr-refine-twostage_shapes3'))).eval()
    draws = np.random.default_rng(0)
    images = [random_image(*size, draws) for size in SIZES]
    first = detections(detector, images)
    assert all((found.scores < max(MIN_SCORES)).all() for found in first)
    bounds = spread_weights(detector, images)
    assert bounds.min_score in MIN_SCORES
    drawn = detections(detector, images)
    assert all((found.scores > bounds.min_score).sum() >= 10 for found in drawn)
    assert not any(np.array_equal(*pair) for pair in zip(first[0], drawn[0], strict=True))
