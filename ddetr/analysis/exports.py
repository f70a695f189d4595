"""Export of configs with random weights, verified in the target's runtime."""

import itertools
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple, cast

import cv2
import numpy as np
import torch
from torch import nn

from ddetr.deployment import Bounds, ExportOptions, Proof, export_detector
from ddetr.deployment.exporting import needs_fixed_size
from ddetr.deployment.proof import Found, changed_by_noise
from ddetr.engine.config import dataset_of, load_config

from .building import build_detector

BOUNDS = Bounds(score=1e-3, box_px=0.5)
# Of compared detections: some detectors have no scores above 0.05 with random weights.
MIN_SCORES = (0.05, 0.01)
NOISES = (0.02, 0.05, 0.1, 0.2, 0.4, 1.0, 2.0)


class ExportRow(NamedTuple):
    """Result of exporting one config."""

    config: str
    proof: Proof
    mib: float  # file size
    seconds: float  # export and verification


def export_config(path: Path, target: str, sizes: list[tuple[int, int]], options: ExportOptions) -> ExportRow:
    """Export a config's detector with random weights and verify it on random images of `sizes` (h, w) in pixels.

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
    images = [random_image(*size, draws) for size in sizes]
    bounds = spread_weights(detector, images)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, 'model.onnx')
        exported = export_detector(detector, target, file, options, images, bounds)
        assert exported.proof is not None
        size = file.stat().st_size / 2**20
    return ExportRow(path.stem, exported.proof, size, time.monotonic() - start)


def random_image(height: int, width: int, draws: np.random.Generator) -> np.ndarray:
    """Return a (3, h, w) uint8 image of blurred blocks: with independent pixels, all places have similar features."""
    blocks = draws.integers(0, 256, (max(height // 16, 1), max(width // 16, 1), 3), dtype=np.uint8)
    image = cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC)
    return np.ascontiguousarray(image.transpose(2, 0, 1))


@torch.no_grad()
def spread_weights(detector: nn.Module, images: list[np.ndarray], at_least: int = 10) -> Bounds:
    """Randomise constant initial weights, such as biases, until each image has `at_least` detections to compare.

    A freshly initialised detector finds the same everywhere, so verifying its export would show little; and where
    many proposals score almost the same, rounding decides which of them become queries. The first noise that leaves
    no image undecided in this way is kept, or else the one that leaves the fewest.

    Returns:
        Bounds with the minimum score of the detections.
    """
    equal = [p for p in detector.parameters() if p.numel() > 1 and bool((p == p.flatten()[0]).all())]
    first = [p.clone() for p in equal]

    def randomise(noise: float) -> None:
        torch.manual_seed(0)
        for parameter, value in zip(equal, first, strict=True):
            parameter.copy_(value + torch.randn_like(value) * noise)

    def undecided(bounds: Bounds) -> int:
        found = detections(detector, images)
        if any((image.scores > bounds.min_score).sum() < at_least for image in found):
            return len(images) + 1
        return sum(changed_by_noise(detector, lambda: detections(detector, images), found, bounds))

    results: dict[tuple[Bounds, float], int] = {}
    for min_score, noise in itertools.product(MIN_SCORES, NOISES):
        bounds = BOUNDS._replace(min_score=min_score)
        randomise(noise)
        results[bounds, noise] = undecided(bounds)
        if results[bounds, noise] == 0:
            return bounds
    bounds, noise = min(results, key=results.__getitem__)
    randomise(noise)
    return bounds


@torch.no_grad()
def detections(detector: nn.Module, images: list[np.ndarray]) -> list[Found]:
    """Detections in (3, h, w) images, as the verification compares them."""
    from ddetr.deployment.module import DeployedDetector

    deployed, preprocess = DeployedDetector(detector), cast(Any, detector.data_preprocessor)
    found = []
    for image in images:
        batch = preprocess({'inputs': [torch.from_numpy(image)], 'data_samples': None})['inputs']
        fields = deployed(batch, torch.tensor([image.shape[1:]]))
        found.append(Found(*(field[0].numpy() for field in fields)))
    return found
