"""Images of a dataset after its pipeline, as the detector gets them."""

import contextlib
import copy
import logging
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
from mmengine.logging import MMLogger
from torch import Tensor

from ddetr.engine.config import explain_build_errors
from ddetr.registry import DATASETS
from ddetr.utils.seeding import seeded

Array = np.ndarray


class Example(NamedTuple):
    """One training image after the pipeline."""

    number: int  # index in the dataset
    inputs: Tensor  # (3, h, w), before normalisation
    sample: Any  # its DetDataSample
    boxes_xyxy_px: Array  # (N, 4), in pixels of `inputs`
    labels: Array  # (N,)

    @property
    def pixels(self) -> Array:
        """Return the image as (h, w, 3) uint8 in the pipeline's channel order, rescaled if not in 0 to 255."""
        image = self.inputs.permute(1, 2, 0).numpy()
        if image.dtype != np.uint8 and (image.min() < 0 or image.max() > 256 or image.max() < 2):
            image = (image - image.min()) * (255 / max(float(np.ptp(image)), 1e-6))
        return np.ascontiguousarray(image.astype(np.uint8))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Suppress log messages of datasets and models."""
    loggers = [logging.getLogger(), MMLogger.get_current_instance()]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def build_dataset(config: Mapping[str, Any]) -> Any:
    """Build a dataset from its config; InputError if that fails."""
    with quiet(), explain_build_errors():
        return DATASETS.build(copy.deepcopy(dict(config)))


def examples_of(dataset: Any, count: int, seed: int = 0) -> list[Example]:
    """Return `count` evenly spaced images of the dataset after its pipeline, with seeded augmentation."""
    with seeded(seed):
        chosen = np.linspace(0, len(dataset) - 1, min(count, len(dataset))).round().astype(int)
        return [_example(int(index), dataset[int(index)]) for index in chosen]


def _example(index: int, item: Mapping[str, Any]) -> Example:
    sample = item['data_samples']
    truth = getattr(sample, 'gt_instances', None)
    if truth is None:
        empty = np.zeros((0, 4))
        return Example(index, item['inputs'], sample, empty, np.zeros(0, dtype=int))
    boxes = truth.bboxes.reshape(-1, 4).numpy().astype(float)
    return Example(index, item['inputs'], sample, boxes, truth.labels.numpy())
