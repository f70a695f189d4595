"""Base class that connects detectors to mmengine's Runner and to the tools."""

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from mmengine.model import BaseModel
from torch import Tensor, nn

from ddetr.models.data_preprocessor import DetDataPreprocessor
from ddetr.registry import MODELS
from ddetr.structures import DetDataSample, Detections, ImageBatch, Samples
from ddetr.utils.errors import ConfigError
from ddetr.weights import WeightFamily


class BaseDetector(BaseModel, ABC):
    """A model that turns a padded batch of images into losses or detections.

    It sends mmengine's three modes to three methods; a subclass writes its whole flow in them. What the tools ask of a
    detector is below them, with answers for a detector that classifies in a `bbox_head`.

    A detector whose losses are divided by counts that depend on its predictions also has a method `count_ahead(batch,
    samples)`, which gives them by name for one batch; its losses take `effective_batch(samples).total(name, here)`.
    """

    weight_family: ClassVar[WeightFamily | None] = None
    detects_any_batch: ClassVar[bool] = (
        False  # whether `detect` handles a batch without a loop over its images
    )

    def __init__(self, data_preprocessor: dict | nn.Module | None = None, init_cfg: Any = None) -> None:
        super().__init__(data_preprocessor, init_cfg)
        if isinstance(self.data_preprocessor, DetDataPreprocessor):
            self.data_preprocessor.with_pad_mask = True

    def forward(
        self,
        inputs: Tensor,
        data_samples: Samples | None = None,
        mode: str = 'tensor',
        pad_mask: Tensor | None = None,
    ) -> Any:
        """Run one batch.

        Args:
            inputs: (B, 3, H, W), normalised and padded by the data preprocessor.
            data_samples: One per image: ground truth for `loss`, sizes for `predict`.
            mode: `loss` -> dict of scalar losses, `predict` -> the samples with `pred_instances`,
                `tensor` -> the raw predictions, which need no samples; `count_ahead` -> see the class.
            pad_mask: (B, H, W) bool, True = padding, as the data preprocessor gives it. Without it the samples'
                `img_shape` says where padding begins; without samples there is none.

        Raises:
            ValueError: Another mode, or no samples for `loss` or `predict`.
        """
        batch = ImageBatch(inputs, _pad_mask(inputs, data_samples) if pad_mask is None else pad_mask)
        if mode == 'tensor':
            return self.tensor(batch)
        if mode == 'count_ahead' and hasattr(self, 'count_ahead'):
            return self.count_ahead(batch, data_samples)
        if mode not in ('loss', 'predict'):
            raise ValueError(f'mode={mode!r} is none of "loss", "predict", "tensor"')
        if data_samples is None:
            raise ValueError(f'mode={mode!r} needs data_samples; for tensors alone call with mode="tensor"')
        return self.loss(batch, data_samples) if mode == 'loss' else self.predict(batch, data_samples)

    @abstractmethod
    def loss(self, batch: ImageBatch, samples: Samples) -> dict[str, Tensor]:
        """A batch and its ground truth -> named scalar losses; those with `loss` in their name are summed."""

    @abstractmethod
    def predict(self, batch: ImageBatch, samples: Samples) -> Samples:
        """A batch -> the samples, each with `pred_instances` in pixels of its original image."""

    @abstractmethod
    def tensor(self, batch: ImageBatch) -> Any:
        """A batch -> the raw predictions before any loss or selection."""

    def detect(self, batch: ImageBatch) -> Detections:
        """A batch -> detections in pixels of its images, as tensors; what an exported detector computes.

        By default by `predict`, with one sample per image, so that an export has to fix the batch's size. A detector
        that computes its detections for the whole batch in tensors sets `detects_any_batch` and is exported for any.
        """
        samples = [DetDataSample() for _ in batch.images]
        for sample, size in zip(samples, batch.sizes_hw, strict=True):
            for name in ('img_shape', 'ori_shape', 'pad_shape'):
                sample.set_field(size, name, field_type='metainfo')  # `metainfo=` would copy symbolic numbers
        found = [sample.pred_instances for sample in self.predict(batch, samples)]
        longest = max(len(instances) for instances in found)
        fields = (
            [F.pad(i[name], (0, 0) * (i[name].dim() - 1) + (0, longest - len(i))) for i in found]
            for name in ('bboxes', 'scores', 'labels')
        )
        return Detections(*map(torch.stack, fields))

    def extract_feat(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> the neck's levels, L x (B, C, H_l, W_l)."""
        return self.neck(self.backbone(images))

    @property
    def num_classes(self) -> int:
        """Number of classes that are detected, without background."""
        return self.bbox_head.num_classes

    def reset_classes(self, num_classes: int) -> list[str]:
        """Renew every part that depends on the classes; the names of the new tensors in the state dict."""
        parts: list[tuple[str, Any]] = [
            (n, p) for n, p in self.named_children() if hasattr(p, 'reset_classes')
        ]
        return [f'{part}.{name}' for part, child in parts for name in child.reset_classes(num_classes)]

    def counted_parts(self) -> dict[str, nn.Module]:
        """The parts that the tools list FLOPs for, by name."""
        return dict(self.named_children())

    def prepare_for_counting(self) -> None:
        """Make the work with random weights as large as with trained ones; called before FLOPs are counted."""


def build_backbone_and_neck(backbone: dict, neck: dict) -> tuple[nn.Module, nn.Module]:
    """Build both; a neck without `in_channels` gets the backbone's `out_channels`.

    Raises:
        ConfigError: The neck's `in_channels` are not the backbone's, or neither of the two gives them.
    """
    body = MODELS.build(backbone)
    given: Any = getattr(body, 'out_channels', None)
    asked: Any = neck.get('in_channels')
    if asked is None and given is None:
        raise ConfigError(
            f'neck.in_channels is missing, and {type(body).__name__} has no out_channels to take.'
        )
    if asked is not None and given is not None and list(asked) != list(given):
        raise ConfigError(
            f'neck.in_channels={list(asked)}, but {type(body).__name__} gives {list(given)} channels: correct the '
            'neck, or leave in_channels out.'
        )
    return body, MODELS.build({**neck, 'in_channels': list(asked or given)})


def _pad_mask(images: Tensor, samples: Samples | None) -> Tensor:
    mask = torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool, device=images.device)
    for row, sample in zip(mask, samples or (), strict=bool(samples)):
        row[sample.img_shape[0] :] = True
        row[:, sample.img_shape[1] :] = True
    return mask
