"""An exported file in the place of a detector: what it says about itself is enough to test and to detect with it."""

import functools
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ddetr import deployment
from ddetr.deployment import ExportInfo, load
from ddetr.deployment.preparing import prepare_batch
from ddetr.deployment.runtimes import Runtime
from ddetr.engine.saved_config import registered_only
from ddetr.structures import Samples
from ddetr.utils.errors import ConfigError, InputError


def is_exported(path: Any) -> bool:
    """Whether a checkpoint's name is that of an exported file."""
    return isinstance(path, (str, Path)) and deployment.is_exported(path)


class ExportedDetector(nn.Module):
    """An exported file behind the methods and attributes of a detector that inference and the Runner use.

    Args:
        path: File that `ddetr export` has written.
        device: 'cpu' unless given; see `ddetr.deployment.load`.
        threads: Of the CPU; by default all cores.

    Attributes:
        dataset_meta: `classes`, the names by label.
        cfg: A config with the test pipeline only.

    Raises:
        InputError: See `ddetr.deployment.load`; or the file's test pipeline names transforms that are not registered.
    """

    def __init__(self, path: str | Path, device: str | None = None, threads: int | None = None) -> None:
        super().__init__()
        self.runtime = load(path, device or 'cpu', threads)
        self.info: ExportInfo = self.runtime.info
        self.dataset_meta = {'classes': tuple(self.info.classes)}
        self.cfg = Config({'test_dataloader': {'dataset': {'pipeline': test_pipeline(self.info, path)}}})

    @torch.no_grad()
    def test_step(self, data: Mapping[str, Any]) -> Samples:
        """Detect in a batch.

        Args:
            data: `inputs`, (3, H_i, W_i) tensors as the test pipeline makes them, and `data_samples`.

        Returns:
            The samples, each with `pred_instances`: `bboxes` (N, 4) x1 y1 x2 y2 in pixels of the original image,
            `scores` (N,), `labels` (N,), best first.

        Raises:
            InputError: The runtime fails on these images, such as those with fewer tokens than there are queries.
        """
        return detect(self.runtime, data['inputs'], data['data_samples'])


def detect(runtime: Runtime, images: Sequence[Tensor], samples: Samples) -> Samples:
    """`ExportedDetector.test_step` for a runtime."""
    sides = np.array([image.shape[1:] for image in images])  # (B, 2)
    batch, sizes_hw = prepare_batch([image.numpy() for image in images], runtime.info)
    shrunk = sizes_hw / sides  # below 1 where an image exceeds a fixed size
    if (shrunk < 1).any():
        _warn_of_shrinking(runtime.info.height, runtime.info.width)
    scales = torch.from_numpy(shrunk[:, [1, 0, 1, 0]].astype(np.float32))  # (B, 4), w h w h
    for sample, scale, *fields in zip(samples, scales, *runtime(batch, sizes_hw), strict=True):
        boxes, scores, labels = (torch.from_numpy(np.array(field)) for field in fields)
        kept = scores > 0  # places without a detection score 0
        sample.pred_instances = InstanceData(
            bboxes=sample.to_original(boxes[kept] / scale), scores=scores[kept], labels=labels[kept]
        )
    return samples


@functools.cache
def _warn_of_shrinking(height: int | None, width: int | None) -> None:
    """Say once that images are made smaller than the test pipeline makes them."""
    print_log(
        f'images that exceed the exported size, {height or "any"} x {width or "any"} pixels (h x w), are scaled down '
        'to it: small objects may be missed. Export dynamic sizes to detect at full size.',
        'current',
        logging.WARNING,
    )


def test_pipeline(info: ExportInfo, path: str | Path) -> list[dict[str, Any]]:
    """The transforms that bring an image to size. InputError if there are none, or of types that are not registered."""
    if not info.test_pipeline:
        raise InputError(f'{path} has no test pipeline: export it again with a config that has one.')
    try:
        steps: list[dict[str, Any]] = _with_tuples(
            registered_only(info.test_pipeline, 'test_dataloader.dataset.pipeline')
        )
        return steps
    except ConfigError as error:
        raise InputError(
            f'the test pipeline in {path} is refused: {error}; import the module that registers it first.'
        ) from error


def _with_tuples(value: Any) -> Any:
    """Lists of numbers as tuples: JSON does not tell them apart, and mmcv's transforms take sizes as tuples only."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        numbers = bool(value) and all(isinstance(item, (int, float)) for item in value)
        return tuple(value) if numbers else [_with_tuples(item) for item in value]
    return value
