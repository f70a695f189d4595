"""Training setup under diagnosis: its datasets, its images as the model sees them, and its initial model."""

import copy
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from mmengine.config import Config
from mmengine.dataset import BaseDataset, pseudo_collate
from mmengine.registry import init_default_scope
from torch import Tensor

from ddetr.analysis.building import build_detector
from ddetr.analysis.examples import Array, Example, build_dataset, examples_of, quiet
from ddetr.registry import DATASETS, SCOPE
from ddetr.utils.seeding import seeded
from ddetr.weights import LoadReport, load_weights

from .contents import describe

IMAGES = 120  # checked per split
BOXES_PER_IMAGE = 8  # used for descriptors; more add little information
LONG_SIDE_PX = 480  # of images for descriptors


class Written(NamedTuple):
    """A box as annotated, before clipping."""

    box_xyxy_px: tuple[float, float, float, float]
    size_wh: tuple[int, int] | None  # image size according to the annotations


class Described(NamedTuple):
    """Boxes with descriptors of their content."""

    features: Array  # (N, D)
    labels: Array  # (N,)
    images: Array  # (N,)
    of_other_images: Array  # (N, D), descriptors of the same boxes on another image


class Subject:
    """A training setup; everything is built once, on first use.

    Args:
        cfg: Config with `--cfg-options` applied.
        checkpoint: Trained weights to check as well.
    """

    def __init__(self, cfg: Config, checkpoint: str | None = None) -> None:
        self.cfg, self.checkpoint = cfg, checkpoint
        self.load_report: LoadReport | None = None
        init_default_scope(SCOPE)

    @cached_property
    def train(self) -> Any:
        """The training dataset."""
        return build_dataset(self.cfg.train_dataloader['dataset'])

    @cached_property
    def val(self) -> Any | None:
        """The validation dataset, otherwise the test dataset; None if there is neither."""
        loader = self.cfg.get('val_dataloader') or self.cfg.get('test_dataloader')
        return build_dataset(loader['dataset']) if loader else None

    @cached_property
    def classes(self) -> Sequence[str]:
        """Class names of the training data; empty if they have none."""
        return (getattr(self.train, 'metainfo', None) or {}).get('classes') or ()

    @cached_property
    def examples(self) -> list[Example]:
        """Evenly spaced images of the training set, with augmentation."""
        return examples_of(self.train, IMAGES)

    @cached_property
    def val_examples(self) -> list[Example]:
        """Images of the validation set."""
        return [] if self.val is None else examples_of(self.val, IMAGES)

    @cached_property
    def described(self) -> Described:
        """The boxes of `examples`."""
        return described(self.examples)

    @cached_property
    def written(self) -> list[Written]:
        """Training boxes as annotated; empty if the dataset does not provide them."""
        return [box for config in _inner(self.cfg.train_dataloader['dataset']) for box in _written(config)]

    @cached_property
    def model(self) -> Any:
        """The detector in its initial state; do not train it."""
        model, self.load_report = start_model(self.cfg, self.cfg.get('load_from'))
        return model

    @cached_property
    def start_state(self) -> dict[str, Tensor]:
        """A copy of the model's initial tensors."""
        return copy.deepcopy(self.model.state_dict())

    def name_of(self, label: int) -> str:
        """Return the name of a class, or its number if it has none."""
        return repr(self.classes[label]) if 0 <= label < len(self.classes) else f'label {label}'


def described(examples: Sequence[Example]) -> Described:
    """Compute descriptors of the boxes of some images, and of the same boxes on the next image."""
    rng = np.random.default_rng(0)
    with_boxes = [example for example in examples if len(visible(example))]
    chosen = [rng.permutation(visible(example))[:BOXES_PER_IMAGE] for example in with_boxes]
    images, boxes, relative = [], [], []
    for example, keep in zip(with_boxes, chosen, strict=True):
        image = example.pixels
        scale = min(1.0, LONG_SIDE_PX / max(image.shape[:2]))
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        images.append(image)
        boxes.append(example.boxes_xyxy_px[keep] * scale)
        relative.append(boxes[-1] / np.array(image.shape[1::-1] * 2))
    own = [describe(image, box) for image, box in zip(images, boxes, strict=True)]
    after = [*images[1:], *images[:1]]
    others = [describe(i, box * np.array(i.shape[1::-1] * 2)) for i, box in zip(after, relative, strict=True)]
    labels = [example.labels[keep] for example, keep in zip(with_boxes, chosen, strict=True)]
    numbers = [np.full(len(box), number) for number, box in enumerate(boxes)]
    if not own:
        return Described(np.zeros((0, 1)), np.zeros(0, int), np.zeros(0, int), np.zeros((0, 1)))
    return Described(*(np.concatenate(parts) for parts in (own, labels, numbers, others)))


def visible(example: Example) -> Array:
    """Return the indices of boxes that cover more than a few pixels."""
    height, width = example.inputs.shape[-2:]
    x1, y1, x2, y2 = example.boxes_xyxy_px.clip(0, [width, height, width, height]).T
    return np.flatnonzero((x2 - x1 >= 4) & (y2 - y1 >= 4))


def _inner(config: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Yield the datasets inside wrappers, including all in a concatenation."""
    if 'datasets' in config:
        for part in config['datasets']:
            yield from _inner(part)
    elif isinstance(config.get('dataset'), Mapping):
        yield from _inner(config['dataset'])
    else:
        yield config


def _written(config: Mapping[str, Any]) -> Iterator[Written]:
    """Yield the annotated boxes; in test mode, datasets do not change them."""
    kind = config.get('type')
    kind = DATASETS.get(kind) if isinstance(kind, str) else kind
    if not (isinstance(kind, type) and issubclass(kind, BaseDataset)):
        return
    dataset = build_dataset({**config, 'test_mode': True, 'pipeline': []})
    for index in range(min(len(dataset), 20 * IMAGES)):
        item = dataset.get_data_info(index)
        size = (item['width'], item['height']) if item.get('width') and item.get('height') else None
        for instance in item.get('instances', ()):
            if not instance.get('ignore_flag'):
                yield Written(tuple(instance['bbox']), size)


def start_model(cfg: Config, weights: str | None, seed: int = 0) -> tuple[Any, LoadReport | None]:
    """Initialise a detector like the Runner, with the weights of `load_from`, if any."""
    partial = cfg.get('allow_partial', False)
    with quiet(), seeded(seed):
        model: Any = build_detector(cfg)
        if weights is None or partial:
            model.init_weights()
        report = load_weights(model, weights, finetune=True, allow_partial=partial) if weights else None
    return model, report


def model_batch(
    model: Any, examples: Sequence[Example], long_side: int, training: bool = True
) -> dict[str, Any]:
    """Collate images with the model's data preprocessor, shrunk to `long_side` pixels for speed."""
    items = []
    for example in examples:
        height, width = example.inputs.shape[-2:]
        scale = min(1.0, long_side / max(height, width))
        size = (max(round(width * scale), 32), max(round(height * scale), 32))
        image = np.ascontiguousarray(example.inputs.permute(1, 2, 0).numpy())
        image, sample = cv2.resize(image, size, interpolation=cv2.INTER_AREA), copy.deepcopy(example.sample)
        factors = torch.tensor([size[0] / width, size[1] / height] * 2)
        for name in ('gt_instances', 'ignored_instances'):
            if name in sample:
                getattr(sample, name).bboxes = getattr(sample, name).bboxes * factors
        before = sample.get('scale_factor', (1.0, 1.0))
        after = (before[0] * size[0] / width, before[1] * size[1] / height)
        sample.set_metainfo({'img_shape': size[::-1], 'scale_factor': after})
        items.append(
            {'inputs': torch.from_numpy(image).permute(2, 0, 1).contiguous(), 'data_samples': sample}
        )
    return model.data_preprocessor(pseudo_collate(items), training)
