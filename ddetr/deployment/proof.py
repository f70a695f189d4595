"""Verification of an export: its runtime and PyTorch must give the same detections on the same images.

Detections are matched by class, score and box, not by rank, so near-equal scores may swap places. If proposals tie, a
single rounding error decides which of them the decoder gets, and results differ by far more than rounding. To tell
such cases from real errors, `shaken` adds noise of a few rounding errors to the output of every layer in PyTorch, like
a different order of summation in another runtime. If PyTorch's own result then also changes by more than the bounds,
the image is undecided: it is reported, but counts neither for nor against the export. At least half of the images must
be decided.
"""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ddetr.structures import DetDataSample
from ddetr.utils.errors import InputError

from .info import ExportInfo
from .preparing import prepare_batch
from .runtimes import Runtime

NOISE = 1e-6  # relative to a layer's largest output: rounding error of float32 sums over a few hundred terms
SHAKES = 2  # number of noise samples


class Bounds(NamedTuple):
    """Maximum differences between an export and PyTorch."""

    score: float = 1e-4
    box_px: float = 0.1
    min_score: float = 0.05  # minimum score of compared detections


class Found(NamedTuple):
    """Detections in one image."""

    boxes: np.ndarray  # (N, 4) x1 y1 x2 y2 in pixels of the input image
    scores: np.ndarray  # (N,) descending
    labels: np.ndarray  # (N,)


class Difference(NamedTuple):
    """Difference between two results for one image."""

    score: float
    box_px: float
    compared: int  # number of matched pairs
    unmatched: str = ''  # describes a detection without a match

    def exceeds(self, bounds: Bounds) -> bool:
        """Whether any difference exceeds its bound or is not finite."""
        within = self.score <= bounds.score and self.box_px <= bounds.box_px
        return bool(self.unmatched) or not within


class Proof(NamedTuple):
    """Results of a comparison over all decided images."""

    images: int
    undecided: int  # images where PyTorch's own result depends on rounding
    detections: int  # number of compared detections
    score: float  # largest difference
    box_px: float
    shapes: list[str]  # batch shapes

    def __str__(self) -> str:
        undecided = f'; {self.undecided} undecided, where proposals tie' if self.undecided else ''
        return (
            f'{self.images} images in batches of {", ".join(self.shapes)}, {self.detections} detections '
            f'compared: largest difference {self.score:.1e} in score, {self.box_px:.1e} pixels{undecided}'
        )


def prove(
    detector: nn.Module, runtime: Runtime, batches: Sequence[Sequence[np.ndarray]], bounds: Bounds
) -> Proof:
    """Compare an exported file in its runtime with the detector on batches of (3, h, w) uint8 images.

    Raises:
        InputError: A difference exceeds the bounds, or too few images are decided.
    """
    differences, undecided, shapes = [], 0, []
    for images in batches:
        arrays, sizes_hw = prepare_batch(images, runtime.info)
        shapes.append('x'.join(map(str, arrays.shape)))
        found = [Found(*fields) for fields in zip(*runtime(arrays, sizes_hw), strict=True)]
        expected = detect(detector, runtime, images, arrays.shape[2:])
        here = [compare(*pair, bounds) for pair in zip(expected, found, strict=True)]
        if any(difference.exceeds(bounds) for difference in here):
            ties = unstable(detector, runtime, images, arrays.shape[2:], expected, bounds)
            undecided += sum(ties)
            here = [difference for difference, tied in zip(here, ties, strict=True) if not tied]
        for difference in here:
            if difference.exceeds(bounds):
                raise InputError(_sentence(difference, bounds, runtime.info))
        differences += here
    total = len(differences) + undecided
    if 2 * undecided > total:
        raise InputError(
            f'the export cannot be verified: in {undecided} of {total} images the result of PyTorch itself changes by '
            'more than the bounds under rounding noise. Use other images with --images.'
        )
    detections = sum(difference.compared for difference in differences)
    if not detections:
        raise InputError(
            f'the export cannot be verified: no detection in these images scores above {bounds.min_score:g}. Use other '
            'images with --images, or a lower --min-score.'
        )
    score = max(difference.score for difference in differences)
    box_px = max(difference.box_px for difference in differences)
    return Proof(total, undecided, detections, score, box_px, shapes)


def _sentence(difference: Difference, bounds: Bounds, info: ExportInfo) -> str:
    what = difference.unmatched or (
        f'scores differ by {difference.score:.2g} (bound {bounds.score:g}) and boxes by {difference.box_px:.2g} pixels '
        f'(bound {bounds.box_px:g})'
    )
    advice = ''
    if info.precision != 'fp32':
        advice = (
            f' {info.precision} can change which proposals are chosen; to compare only AP, add --data DIR '
            '--max-score-diff inf --max-box-diff inf.'
        )
    return f'the export to {info.target} does not match PyTorch: {what}. Nothing was written.{advice}'


@torch.no_grad()
def detect(detector: Any, runtime: Runtime, images: Sequence[np.ndarray], size: Sequence[int]) -> list[Found]:
    """Run the detector with its own data preprocessor and `predict`, in batches padded to `size` (h, w)."""
    from .preparing import fit

    info = runtime.info
    inputs = [torch.from_numpy(fit(image, info.height, info.width)) for image in images]
    samples = [
        DetDataSample(
            metainfo={'img_id': i, 'img_shape': tuple(image.shape[1:]), 'ori_shape': tuple(image.shape[1:])}
        )
        for i, image in enumerate(inputs)
    ]
    batch = detector.data_preprocessor({'inputs': inputs, 'data_samples': samples})
    missing = [side - have for side, have in zip(size, batch['inputs'].shape[2:], strict=True)]
    padding = (0, missing[1], 0, missing[0])
    batch['inputs'] = nn.functional.pad(batch['inputs'], padding, value=info.pad_value)
    if 'pad_mask' in batch:
        batch['pad_mask'] = nn.functional.pad(batch['pad_mask'], padding, value=True)
    results = []
    for sample in detector(**batch, mode='predict'):
        found = sample.pred_instances
        results.append(Found(*(found[name].cpu().numpy() for name in ('bboxes', 'scores', 'labels'))))
    return results


def unstable(
    detector: nn.Module,
    runtime: Runtime,
    images: Sequence[np.ndarray],
    size: Sequence[int],
    expected: Sequence[Found],
    bounds: Bounds,
) -> list[bool]:
    """Return for each image whether the detector's own result changes by more than the bounds under rounding noise."""
    return changed_by_noise(detector, lambda: detect(detector, runtime, images, size), expected, bounds)


def changed_by_noise(
    detector: nn.Module, run: Callable[[], Sequence[Found]], expected: Sequence[Found], bounds: Bounds
) -> list[bool]:
    """Return for each result of `run` whether rounding noise moves it from `expected` by more than the bounds."""
    changed = [False] * len(expected)
    for seed in range(SHAKES):
        with shaken(detector, seed):
            again = run()
        now = [compare(*pair, bounds).exceeds(bounds) for pair in zip(expected, again, strict=True)]
        changed = [a or b for a, b in zip(changed, now, strict=True)]
    return changed


@contextlib.contextmanager
def shaken(detector: nn.Module, seed: int) -> Iterator[None]:
    """Add noise of `NOISE` times the largest output to the outputs of all convolutions and linear layers."""
    generator = torch.Generator().manual_seed(seed)

    def shake(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        if output.numel() == 0:  # an image without proposals
            return output
        noise = torch.randn(output.shape, generator=generator).to(output)
        return output + noise * output.abs().amax() * NOISE

    layers = [module for module in detector.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    hooks = [layer.register_forward_hook(shake) for layer in layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def compare(expected: Found, found: Found, bounds: Bounds) -> Difference:
    """Match the detections of two results above the minimum score, and return the largest difference of a pair.

    A detection may be unmatched if the other result was cut off there: at the minimum score or the end of the list.
    """
    from scipy.optimize import linear_sum_assignment

    if not all(np.isfinite(array).all() for array in found[:2]):
        return Difference(np.inf, np.inf, 0, 'a score or a box is not finite')
    rows, columns = (np.flatnonzero(result.scores > bounds.min_score) for result in (expected, found))
    by_score = np.abs(expected.scores[rows, None] - found.scores[None, columns])  # (n, m)
    by_box = np.abs(expected.boxes[rows, None] - found.boxes[None, columns]).max(-1, initial=0.0)
    other_class = expected.labels[rows, None] != found.labels[None, columns]
    # different classes never match; a pixel counts as much as 1e-3 in score
    cost = by_score * 1e3 + by_box + other_class * 1e9
    at, to = linear_sum_assignment(cost)
    paired = ~other_class[at, to]
    at, to = at[paired], to[paired]
    worst = [float(field[at, to].max(initial=0.0)) for field in (by_score, by_box)]
    problem = _without_partner(
        'PyTorch', expected, rows[np.setdiff1d(np.arange(len(rows)), at)], found, bounds
    ) or _without_partner(
        'the export', found, columns[np.setdiff1d(np.arange(len(columns)), to)], expected, bounds
    )
    return Difference(worst[0], worst[1], len(at), problem)


def _without_partner(who: str, result: Found, alone: np.ndarray, other: Found, bounds: Bounds) -> str:
    """Describe the best of the unmatched detections `alone`, unless the other side cut it off by rank or score."""
    cut_by_rank = 0 < len(result.scores) <= len(other.scores)
    lowest = max(bounds.min_score, float(other.scores[-1]) if cut_by_rank else 0.0)
    missing = [i for i in alone if result.scores[i] > lowest + bounds.score]
    if not missing:
        return ''
    best = missing[0]
    return f'only {who} detects class {result.labels[best]} with score {result.scores[best]:.4f}'
