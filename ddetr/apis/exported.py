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
from ddetr.deployment import EXPORT_SUFFIXES, ExportInfo, load
from ddetr.engine.config import load_config
from ddetr.engine.saved_config import KEPT, registered_only
from ddetr.registry import SCOPE
from ddetr.structures import Samples
from ddetr.utils.errors import ConfigError, InputError, first_line


def is_exported(path: Any) -> bool:
    """Whether a checkpoint's name is that of an exported file."""
    return isinstance(path, (str, Path)) and Path(path).suffix.lower() in EXPORT_SUFFIXES


class ExportedDetector(nn.Module):
    """An exported file behind the methods and attributes of a detector that inference and the Runner use.

    Args:
        path: File that `ddetr export` has written.
        device: 'cpu', 'cuda', ...; see `ddetr.deployment.load`.
        threads: See `ddetr.deployment.load`.

    Attributes:
        dataset_meta: `classes`, the names by label.
        cfg: A config with the test pipeline only.

    Raises:
        InputError: See `ddetr.deployment.load`; or the file's test pipeline names transforms that are not registered.
    """

    def __init__(self, path: str | Path, device: str | None = None, threads: int | None = None) -> None:
        super().__init__()
        self.path = str(path)
        self.runtime = load(path, device, threads)
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
            InputError: The images are too large for a file of fixed size, or the runtime cannot run them.
        """
        images, samples = data['inputs'], data['data_samples']
        step = self.info.batch or len(images)
        for start in range(0, len(images), step):
            self._detect(images[start : start + step], samples[start : start + step])
        return samples

    def _detect(self, images: Sequence[Tensor], samples: Samples) -> None:
        batch, sizes_hw = make_batch([image.numpy() for image in images], self.info, self.path)
        try:
            found = self.runtime(batch, sizes_hw)
        except InputError:
            raise
        except Exception as error:  # every runtime has errors of its own
            shape = ' x '.join(map(str, batch.shape))
            raise InputError(f'{self.path} cannot run a batch of {shape}: {first_line(error)}') from error
        for sample, *fields in zip(samples, *found, strict=False):  # a batch of fixed size has more
            boxes, scores, labels = (torch.from_numpy(np.array(field)) for field in fields)
            kept = scores > 0  # places without a detection score 0
            sample.pred_instances = InstanceData(
                bboxes=sample.to_original(boxes[kept]), scores=scores[kept], labels=labels[kept]
            )


def make_batch(
    images: Sequence[np.ndarray], info: ExportInfo, path: str | Path
) -> tuple[np.ndarray, np.ndarray]:
    """The inputs of an exported graph: images normalised, unless the graph does that, and padded.

    Args:
        images: (3, H_i, W_i) each; at most `info.batch`, where that is fixed.
        info: What the file says about itself.
        path: Of the file, for messages.

    Returns:
        (B, 3, H, W), and (B, 2) int64, their heights and widths without padding. A batch of fixed size is filled with
        copies of the last image.

    Raises:
        InputError: An image is larger than the fixed size.
    """
    sizes = [image.shape[1:] for image in images]
    divisor = math.lcm(info.pad_size_divisor, info.multiple_of)
    largest = [-(-max(sides) // divisor) * divisor for sides in zip(*sizes, strict=True)]
    height, width = (fixed or side for fixed, side in zip((info.height, info.width), largest, strict=True))
    for size in sizes:
        if size[0] > height or size[1] > width:
            raise InputError(
                f'{path} takes images of at most {height} x {width} pixels (h, w), and its test pipeline makes '
                f'{size[0]} x {size[1]} of this one: export with another size, or with dynamic ones.'
            )
    inside = info.preprocessing == 'inside'
    count = info.batch or len(images)
    fill, dtype = (0, np.uint8) if inside else (info.pad_value, np.float32)
    batch = np.full((count, 3, height, width), fill, dtype)
    for i in range(count):
        image = images[min(i, len(images) - 1)]
        batch[i, :, : image.shape[1], : image.shape[2]] = image if inside else _normalised(image, info)
    return batch, np.array([sizes[min(i, len(sizes) - 1)] for i in range(count)], np.int64)


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
