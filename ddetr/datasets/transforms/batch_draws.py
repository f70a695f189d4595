"""Random transforms that change the image size; the images of a batch can share their draws."""

from collections.abc import Callable
from functools import wraps
from typing import Any

import mmcv.transforms as mmcv
import numpy as np

from ddetr.registry import TRANSFORMS

Transform = Callable[[Any, dict], dict | None]


def drawn_for_batch(transform: Transform) -> Transform:
    """Decorate a `transform` method to draw with the image's `batch_seed`, if there is one, and advance the seed.

    Every transform of an image, nested ones included, gets its own seed, so the draws of one do not affect the next.
    Undecorated transforms still draw from the process's generator.
    """

    @wraps(transform)
    def transform_with_seed(self: Any, results: dict) -> dict | None:
        seed = results.get('batch_seed')
        if seed is None:
            return transform(self, results)
        results['batch_seed'] = (1664525 * seed + 1013904223) % 2**32  # a full cycle (Numerical Recipes, 7.1)
        state = np.random.get_state()
        np.random.seed(seed)
        try:
            return transform(self, results)
        finally:
            np.random.set_state(state)

    return transform_with_seed


@TRANSFORMS.register_module()
class RandomChoice(mmcv.RandomChoice):
    """mmcv's random choice between pipelines, with shared draws."""

    transform = drawn_for_batch(mmcv.RandomChoice.transform)


@TRANSFORMS.register_module()
class RandomChoiceResize(mmcv.RandomChoiceResize):
    """mmcv's resize to one of several scales, with shared draws."""

    transform = drawn_for_batch(mmcv.RandomChoiceResize.transform)


@TRANSFORMS.register_module()
class RandomResize(mmcv.RandomResize):
    """mmcv's resize to a random scale in a range, with shared draws."""

    transform = drawn_for_batch(mmcv.RandomResize.transform)
