"""Boxes of a sample: `gt_bboxes` (N, 4) float32 x1 y1 x2 y2 in pixels, with their labels and flags."""

from collections.abc import Sequence

import numpy as np

BOX_KEYS = ('gt_bboxes', 'gt_bboxes_labels', 'gt_ignore_flags')
# keys that describe a single source image; invalid for mixed or warped samples
SOURCE_KEYS = ('instances', 'scale_factor', 'flip', 'flip_direction')


def keep_boxes(results: dict, keep: np.ndarray) -> None:
    """Keep the boxes where `keep` (N,) is True, with their labels and flags."""
    for key in BOX_KEYS:
        if key in results:
            results[key] = results[key][keep]


def select_boxes(results: dict, width: int, height: int, clip: bool = True) -> dict:
    """Drop boxes entirely outside a `width` x `height` image, and optionally clip the others to it."""
    boxes = results['gt_bboxes']
    clipped = np.clip(boxes, 0, np.array([width, height, width, height], dtype=np.float32))
    results['gt_bboxes'] = (clipped if clip else boxes).astype(np.float32)
    keep_boxes(results, (clipped[:, 2:] > clipped[:, :2]).all(axis=1))
    return results


def set_boxes(results: dict, parts: Sequence[dict], clip: bool) -> dict:
    """Set the boxes of a sample to those of all `parts` that lie in its image."""
    for key in BOX_KEYS:
        if key in results:
            results[key] = np.concatenate([part[key] for part in parts])
    height, width = results['img'].shape[:2]
    return select_boxes(results, width, height, clip) if 'gt_bboxes' in results else results


def drop_source_keys(results: dict) -> None:
    """Remove the keys that only describe the image as it was read."""
    for key in SOURCE_KEYS:
        results.pop(key, None)


def check_prob(name: str, value: float, key: str = 'prob') -> None:
    """Raise ValueError unless `value` is a probability."""
    if not 0 <= value <= 1:
        raise ValueError(f'{name}({key}={value}) is not a probability between 0 and 1.')
