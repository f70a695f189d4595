"""Use an exported file in place of a detector, for testing and inference, based on its own metadata."""

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
    """Whether a path has the suffix of an exported file."""
    return isinstance(path, (str, Path)) and deployment.is_exported(path)


class ExportedDetector(nn.Module):
    """Exported file with the detector interface used by inference and the Runner.

    Args:
        path: File written by `ddetr export`.
        device: Device, default 'cpu'; see `ddetr.deployment.load`.
        threads: Number of CPU threads; default: all cores.

    Attributes:
        dataset_meta: Dict with `classes`, the class names by label.
        cfg: Config that contains only the test pipeline.

    Raises:
        InputError: See `ddetr.deployment.load`; or the file's test pipeline uses transforms that are not registered.
    """

    def __init__(self, path: str | Path, device: str | None = None, threads: int | None = None) -> None:
        super().__init__()
        self.runtime = load(path, device or 'cpu', threads)
        self.info: ExportInfo = self.runtime.info
        self.dataset_meta = {'classes': tuple(self.info.classes)}
        self.cfg = Config({'test_dataloader': {'dataset': {'pipeline': test_pipeline(self.info, path)}}})

    @torch.no_grad()
    def test_step(self, data: Mapping[str, Any]) -> Samples:
        """Detect objects in a batch.

        Args:
            data: Dict with `inputs`, (3, H_i, W_i) tensors from the test pipeline, and `data_samples`.

        Returns:
            The samples, each with `pred_instances`: `bboxes` (N, 4) x1 y1 x2 y2 in pixels of the original image,
            `scores` (N,), `labels` (N,), best first.

        Raises:
            InputError: The runtime fails on these images, for example if they have fewer tokens than queries.
        """
        return detect(self.runtime, data['inputs'], data['data_samples'])


def detect(runtime: Runtime, images: Sequence[Tensor], samples: Samples) -> Samples:
    """Implementation of `ExportedDetector.test_step` for a runtime."""
    sides = np.array([image.shape[1:] for image in images])  # (B, 2)
    batch, sizes_hw = prepare_batch([image.numpy() for image in images], runtime.info)
    shrunk = sizes_hw / sides  # below 1 if an image exceeds the fixed size
    if (shrunk < 1).any():
        _warn_of_shrinking(runtime.info.height, runtime.info.width)
    scales = torch.from_numpy(shrunk[:, [1, 0, 1, 0]].astype(np.float32))  # (B, 4), w h w h
    for sample, scale, *fields in zip(samples, scales, *runtime(batch, sizes_hw), strict=True):
        boxes, scores, labels = (torch.from_numpy(np.array(field)) for field in fields)
        kept = scores > 0  # unused slots have score 0
        sample.pred_instances = InstanceData(
            bboxes=sample.to_original(boxes[kept] / scale), scores=scores[kept], labels=labels[kept]
        )
    return samples


@functools.cache
def _warn_of_shrinking(height: int | None, width: int | None) -> None:
    """Warn once that images are scaled down below the size of the test pipeline."""
    print_log(
        f'images larger than the exported size of {height or "any"} x {width or "any"} pixels (h x w) are scaled down '
        'to it: small objects may be missed. Export with dynamic sizes to detect at full resolution.',
        'current',
        logging.WARNING,
    )


def test_pipeline(info: ExportInfo, path: str | Path) -> list[dict[str, Any]]:
    """Test pipeline of an exported file. Raise InputError if there is none or it uses unregistered types."""
    if not info.test_pipeline:
        raise InputError(f'{path} has no test pipeline: export it again with a config that has one.')
    try:
        steps: list[dict[str, Any]] = _with_tuples(
            registered_only(info.test_pipeline, 'test_dataloader.dataset.pipeline')
        )
        return steps
    except ConfigError as error:
        raise InputError(
            f'the test pipeline in {path} cannot be used: {error}; import the module that registers it first.'
        ) from error


def _with_tuples(value: Any) -> Any:
    """Convert lists of numbers to tuples: JSON has no tuples, but mmcv's transforms accept sizes only as tuples."""
    if isinstance(value, dict):
        return {key: _with_tuples(item) for key, item in value.items()}
    if isinstance(value, list):
        numbers = bool(value) and all(isinstance(item, (int, float)) for item in value)
        return tuple(value) if numbers else [_with_tuples(item) for item in value]
    return value
