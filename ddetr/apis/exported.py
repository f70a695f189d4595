"""An exported file in the place of a detector: what it says about itself is enough to test and to detect with it."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ddetr.datasets.coco_format import listing
from ddetr.datasets.formats import data_options
from ddetr import deployment
from ddetr.deployment import ExportInfo, load
from ddetr.engine.config import load_config
from ddetr.engine.saved_config import KEPT, registered_only
from ddetr.registry import SCOPE
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
            InputError: An image is too large for a file of fixed size, or the runtime fails on it.
        """
        samples = data['data_samples']
        found = self.runtime(*make_batch([image.numpy() for image in data['inputs']], self.info))
        for sample, *fields in zip(samples, *found, strict=True):
            boxes, scores, labels = (torch.from_numpy(np.array(field)) for field in fields)
            kept = scores > 0  # places without a detection score 0
            sample.pred_instances = InstanceData(
                bboxes=sample.to_original(boxes[kept]), scores=scores[kept], labels=labels[kept]
            )
        return samples


def make_batch(images: Sequence[np.ndarray], info: ExportInfo) -> tuple[np.ndarray, np.ndarray]:
    """The inputs of an exported graph: images normalised, unless the graph does that, and padded.

    Args:
        images: (3, H_i, W_i) each, as the test pipeline makes them.
        info: What the file says about itself.

    Returns:
        (B, 3, H, W), and (B, 2) int64, their heights and widths without padding.

    Raises:
        InputError: An image is larger than the fixed size.
    """
    sizes_hw = np.array([image.shape[1:] for image in images], np.int64)  # (B, 2)
    divisor = math.lcm(info.pad_size_divisor, info.multiple_of)
    padded = -(-sizes_hw.max(0) // divisor) * divisor
    height, width = (
        fixed or int(side) for fixed, side in zip((info.height, info.width), padded, strict=True)
    )
    for size in sizes_hw:
        if size[0] > height or size[1] > width:
            raise InputError(
                f'the exported detector takes images of {height} x {width} pixels (h x w), and its test pipeline makes '
                f'{size[0]} x {size[1]} of this one: export another size, or dynamic ones.'
            )
    inside = info.preprocessing == 'inside'
    fill, dtype = (0, np.uint8) if inside else (info.pad_value, np.float32)
    batch = np.full((len(images), 3, height, width), fill, dtype)
    for place, image in zip(batch, images, strict=True):
        place[:, : image.shape[1], : image.shape[2]] = image if inside else _normalised(image, info)
    return batch, sizes_hw


def _normalised(image: np.ndarray, info: ExportInfo) -> np.ndarray:
    """As the data preprocessor does: channels in the model's order, then mean and std."""
    image = (image[::-1] if info.bgr_to_rgb else image).astype(np.float32)
    if not info.mean:
        return image
    mean, std = (np.array(values, np.float32)[:, None, None] for values in (info.mean, info.std))
    return (image - mean) / std


def test_pipeline(info: ExportInfo, path: str | Path) -> list[dict[str, Any]]:
    """The transforms that bring an image to size. InputError for types that are not registered."""
    try:
        return registered_only(info.test_pipeline, 'test_dataloader.dataset.pipeline')
    except ConfigError as error:
        raise InputError(
            f'the test pipeline in {path} is refused: {error}; import the module that registers it first.'
        ) from error


def exported_test_config(path: str | Path, config: str | Path | None, data: str | None) -> Config:
    """A config that evaluates an exported file.

    Args:
        path: Of the file. Its test pipeline and classes are taken.
        config: Config whose test set and metrics are taken; None for `data` with `CocoMetric`.
        data: Folder of a dataset, in place of the config's.

    Raises:
        InputError: Neither config nor data; or one of them, or the file, cannot be used.
    """
    if config is None and data is None:
        raise InputError(f'{path} carries no dataset: name one by --data DIR, or give a config.')
    # loaded here too, so that a wrong file is found at once
    info = load(path).info
    given = load_config(config) if config is not None else Config(_without_config())
    cfg = Config({key: given[key] for key in (*KEPT, 'custom_imports') if key in given})
    cfg['model'] = {'type': ExportedDetector, 'path': str(path)}
    if data is not None:
        loaders = {'train_dataloader': {'dataset': {'metainfo': {'classes': tuple(info.classes)}}}}
        found = data_options({**cfg, **loaders}, data)
        cfg.merge_from_dict({key: value for key, value in found.items() if key.startswith('test_')})
    dataset = _innermost(cfg.test_dataloader.dataset)
    *steps, pack = test_pipeline(info, path)
    boxes = [{'type': 'LoadAnnotations'}]  # for --show-dir
    steps = [step for step in steps if 'LoadAnnotations' not in str(step['type'])]
    dataset['pipeline'] = [*steps, *boxes, pack]
    if 'classes' not in (dataset.get('metainfo') or {}):
        dataset['metainfo'] = {**(dataset.get('metainfo') or {}), 'classes': tuple(info.classes)}
    named = tuple(dataset['metainfo']['classes'])
    if named != tuple(info.classes):
        raise InputError(
            f'{path} detects {listing(info.classes)}, but {data or config} has the classes {listing(named)}: evaluate '
            'it on a dataset with its own classes, in their order.'
        )
    return cfg


def _without_config() -> dict[str, Any]:
    return {
        'default_scope': SCOPE,
        'test_dataloader': {
            'batch_size': 1,
            'num_workers': 2,
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'dataset': {'test_mode': True},
        },
        'test_evaluator': {'type': 'CocoMetric'},
        'test_cfg': {},
        'visualizer': {'type': 'DetLocalVisualizer'},
    }


def _innermost(dataset: Any) -> Any:
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    return dataset
