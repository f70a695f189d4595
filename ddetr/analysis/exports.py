"""Export of configs with random weights, verified in the target's runtime."""

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ddetr.deployment import Bounds, ExportOptions, Proof, export_detector
from ddetr.deployment.exporting import needs_fixed_size
from ddetr.deployment.proof import Found, changed_by_noise
from ddetr.engine.config import dataset_of, load_config

from .building import build_detector

# Random weights give low scores: with the usual bound of 0.05 there would often be nothing to compare.
BOUNDS = Bounds(score=1e-3, box_px=0.5, min_score=0.01)
NOISES = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0, 2.0)


class ExportRow(NamedTuple):
    """Result of exporting one config."""

    config: str
    proof: Proof
    mib: float  # file size
    seconds: float  # export and verification


def export_config(path: Path, target: str, sizes: list[tuple[int, int]], options: ExportOptions) -> ExportRow:
    """Export a config's detector with random weights and verify it on random images of `sizes` (h, w).

    A detector that needs a fixed size is exported with the first one, in which all images are cropped or padded.

    Raises:
        InputError: A difference exceeds `BOUNDS`, or the detector cannot be exported.
    """
    start = time.monotonic()
    cfg = load_config(path)
    torch.manual_seed(0)
    detector: Any = build_detector(cfg).eval()
    classes = dataset_of(cfg.test_dataloader).get('metainfo', {}).get('classes')
    detector.cfg = cfg
    detector.dataset_meta = {'classes': classes or [f'class {i}' for i in range(detector.num_classes)]}
    draws = np.random.default_rng(0)
    if needs_fixed_size(detector):
        height, width = sizes[0]
        options = options._replace(height=height, width=width)
        sizes = [(min(h, height), min(w, width)) for h, w in sizes]
    images = [draws.integers(0, 256, (3, *size), dtype=np.uint8) for size in sizes]
    spread_weights(detector, images[0])
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'model.onnx')
        exported = export_detector(detector, target, file, options, images, BOUNDS)
        assert exported.proof is not None
        size = file.stat().st_size / 2**20
    return ExportRow(path.stem, exported.proof, size, time.monotonic() - start)


@torch.no_grad()
def spread_weights(detector: Any, image: np.ndarray, at_least: int = 10) -> None:
    """Randomise constant initial weights, such as biases, until the verification can compare some detections.

    A freshly initialised detector finds the same everywhere, so verifying its export would show little; and where
    many proposals score almost the same, rounding decides which of them become queries.
    """
    equal = [p for p in detector.parameters() if p.numel() > 1 and bool((p == p.flatten()[0]).all())]
    first = [p.clone() for p in equal]
    for must_be_decided, noise in itertools.product((True, False), NOISES):
        for parameter, value in zip(equal, first, strict=True):
            parameter.copy_(value + torch.randn_like(value) * noise)
        found = detections(detector, image)
        if (found.scores > BOUNDS.min_score).sum() < at_least:
            continue
        if not must_be_decided or changed_by_noise(
            detector, lambda: [detections(detector, image)], [found], BOUNDS
        ) == [False]:
            return


def detections(detector: nn.Module, image: np.ndarray) -> Found:
    """Detections in one (3, h, w) image, as the verification compares them."""
    from ddetr.deployment.module import DeployedDetector

    preprocess: Any = detector.data_preprocessor
    batch = preprocess({'inputs': [torch.from_numpy(image)], 'data_samples': None})['inputs']
    sizes = torch.tensor([image.shape[1:]])
    return Found(*(field[0].numpy() for field in DeployedDetector(detector)(batch, sizes)))
