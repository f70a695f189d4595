"""Detector as a function of tensors, for tracing and verification."""

from typing import Any

import torch
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn

from ddetr.structures import ImageBatch
from ddetr.utils.errors import InputError


class DeployedDetector(nn.Module):
    """A detector's own forward pass and selection with the signature of exported files; see `ExportInfo`.

    Args:
        detector: A `BaseDetector` in evaluation mode; not modified.
        preprocessing: 'outside' or 'inside'; see `ExportInfo`.

    Raises:
        InputError: The model has no method `detect`, or preprocessing is 'inside' with an unsupported data
            preprocessor.
    """

    def __init__(self, detector: Any, preprocessing: str = 'outside') -> None:
        super().__init__()
        if not hasattr(detector, 'detect'):
            raise InputError(
                f'{type(detector).__name__} cannot be exported: it is not a subclass of BaseDetector and does not '
                'have its method `detect`.'
            )
        self.detector: Any = detector
        preprocessor = getattr(detector, 'data_preprocessor', None)
        if preprocessing == 'inside' and not isinstance(preprocessor, ImgDataPreprocessor):
            raise InputError(
                f'preprocessing inside the graph: {type(preprocessor).__name__} is not an ImgDataPreprocessor. Export '
                'without --with-preprocessing.'
            )
        self.preprocessor = preprocessor if preprocessing == 'inside' else None
        self.divisor = int(getattr(preprocessor, 'pad_size_divisor', 1))
        self.pad_value = float(getattr(preprocessor, 'pad_value', 0)) if preprocessing == 'outside' else 0.0

    def forward(self, images: Tensor, sizes_hw: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Detect in padded images (B, 3, H, W) of unpadded sizes (B, 2) int64."""
        images = self.pad(images)
        height, width = images.shape[-2:]
        rows, columns = (torch.arange(side, device=images.device) for side in (height, width))
        below = rows[None, :, None] >= sizes_hw[:, 0, None, None]  # (B, H, 1)
        right = columns[None, None] >= sizes_hw[:, 1, None, None]  # (B, 1, W)
        pad_mask = below | right
        if self.preprocessor is not None:
            images = normalise(images, pad_mask, self.preprocessor)
        found = self.detector.detect(ImageBatch(images, pad_mask))
        # torch.export.save does not support named tuples
        return found.boxes_xyxy_px.float(), found.scores.float(), found.labels.long()

    def pad(self, images: Tensor) -> Tensor:
        """Pad dynamic heights and widths to multiples of the detector's `pad_size_divisor`.

        They are multiples already. This tells the tracer so: the sizes of all levels become short expressions, which
        decide the time of a trace.
        """
        below, right = (
            -(-side // self.divisor) * self.divisor - side if isinstance(side, torch.SymInt) else 0
            for side in images.shape[-2:]
        )
        return nn.functional.pad(images, (0, right, 0, below), value=self.pad_value)


def normalise(images: Tensor, pad_mask: Tensor, preprocessor: Any) -> Tensor:
    """Swap channels, normalise and fill the padding of (B, 3, H, W) uint8 as mmengine's `ImgDataPreprocessor` does."""
    if preprocessor._channel_conversion:
        images = images.flip(1)
    images = images.float()
    if preprocessor._enable_normalize:
        images = (images - preprocessor.mean) / preprocessor.std
    return images.masked_fill(pad_mask[:, None], float(preprocessor.pad_value))
