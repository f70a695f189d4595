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
    """Base class for detectors: maps a padded batch of images to losses or detections.

    mmengine's three modes are dispatched to the abstract methods `loss`, `predict` and `tensor`, which subclasses
    implement. The remaining methods are used by the tools; their defaults suit detectors that classify in a
    `bbox_head`.

    If the losses are normalised by counts that depend on predictions, the detector also needs a method
    `count_ahead(batch, samples)` that returns these counts by name for one batch. Its losses then use
    `effective_batch(samples).total(name, here)`.
    """

    weight_family: ClassVar[WeightFamily | None] = None
    detects_any_batch: ClassVar[bool] = (
        False  # whether `detect` processes a batch without looping over its images
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
            mode: `loss` returns a dict of scalar losses, `predict` the samples with `pred_instances`, `tensor` the
                raw predictions (no samples needed). For `count_ahead`, see the class.
            pad_mask: (B, H, W) bool, True = padding, from the data preprocessor. If None, it is derived from the
                samples' `img_shape`; without samples, no pixel counts as padding.

        Raises:
            ValueError: Unknown mode, or no samples for `loss` or `predict`.
        """
        batch = ImageBatch(inputs, _pad_mask(inputs, data_samples) if pad_mask is None else pad_mask)
        if mode == 'tensor':
            return self.tensor(batch)
        if mode == 'count_ahead' and hasattr(self, 'count_ahead'):
            return self.count_ahead(batch, data_samples)
        if mode not in ('loss', 'predict'):
            raise ValueError(f'mode={mode!r} must be "loss", "predict" or "tensor"')
        if data_samples is None:
            raise ValueError(f'mode={mode!r} needs data_samples; without them use mode="tensor"')
        return self.loss(batch, data_samples) if mode == 'loss' else self.predict(batch, data_samples)

    @abstractmethod
    def loss(self, batch: ImageBatch, samples: Samples) -> dict[str, Tensor]:
        """Compute named scalar losses for a batch. Those with `loss` in their name are summed."""

    @abstractmethod
    def predict(self, batch: ImageBatch, samples: Samples) -> Samples:
        """Add `pred_instances` to each sample, in pixels of its original image, and return the samples."""

    @abstractmethod
    def tensor(self, batch: ImageBatch) -> Any:
        """Compute raw predictions for a batch, before losses or post-processing."""

    def detect(self, batch: ImageBatch) -> Detections:
        """Compute detections as tensors, in pixels of the input images. This is the graph of an exported detector.

        The default calls `predict` with one sample per image, which fixes the batch size of an export. Detectors that
        process the whole batch in tensors set `detects_any_batch` and can be exported with a dynamic batch size.
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

    def parse_losses(self, losses: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """As in mmengine; also logs the `measures` of submodules that have them, such as `SetCriterion`."""
        loss, logged = super().parse_losses(losses)
        for part in self.modules():
            logged.update(vars(part).get('measures', {}))
        return loss, logged

    def extract_feat(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> feature levels of the neck, L x (B, C, H_l, W_l)."""
        return self.neck(self.backbone(images))

    @property
    def num_classes(self) -> int:
        """Number of object classes, excluding background."""
        return self.bbox_head.num_classes

    def reset_classes(self, num_classes: int) -> list[str]:
        """Reinitialise all class-dependent layers. Return the state dict names of the new tensors."""
        parts: list[tuple[str, Any]] = [
            (n, p) for n, p in self.named_children() if hasattr(p, 'reset_classes')
        ]
        return [f'{part}.{name}' for part, child in parts for name in child.reset_classes(num_classes)]

    def counted_parts(self) -> dict[str, nn.Module]:
        """Components for which the tools report FLOPs, by name."""
        return dict(self.named_children())

    def prepare_for_counting(self) -> None:
        """Make the compute of a randomly initialised model match a trained one; called before counting FLOPs."""


def build_backbone_and_neck(backbone: dict, neck: dict) -> tuple[nn.Module, nn.Module]:
    """Build a backbone and its neck. A neck without `in_channels` uses the backbone's `out_channels`.

    Raises:
        ConfigError: The neck's `in_channels` differ from the backbone's `out_channels`, or both are missing.
    """
    body = MODELS.build(backbone)
    given: Any = getattr(body, 'out_channels', None)
    asked: Any = neck.get('in_channels')
    if asked is None and given is None:
        raise ConfigError(
            f'neck.in_channels is missing and {type(body).__name__} has no out_channels: set neck.in_channels.'
        )
    if asked is not None and given is not None and list(asked) != list(given):
        raise ConfigError(
            f'neck.in_channels={list(asked)}, but {type(body).__name__} has {list(given)} output channels: correct '
            'in_channels or omit it.'
        )
    return body, MODELS.build({**neck, 'in_channels': list(asked or given)})


def _pad_mask(images: Tensor, samples: Samples | None) -> Tensor:
    mask = torch.zeros(len(images), *images.shape[-2:], dtype=torch.bool, device=images.device)
    for row, sample in zip(mask, samples or (), strict=bool(samples)):
        row[sample.img_shape[0] :] = True
        row[:, sample.img_shape[1] :] = True
    return mask
