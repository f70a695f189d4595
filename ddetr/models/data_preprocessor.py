"""Normalise and pad lists of images to a batch for the detector."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn

from ddetr.registry import MODELS


@MODELS.register_module()
class BatchFixedSizePad(nn.Module):
    """Pad every batch at the right and bottom to a fixed size, for large-scale jittering.

    Args:
        size: (h, w) in pixels.
        img_pad_value: Fill value of the padding, applied after normalisation.

    Raises:
        ValueError: A batch exceeds `size`.
    """

    def __init__(self, size: Sequence[int], img_pad_value: float = 0):
        super().__init__()
        self.size, self.img_pad_value = tuple(size), img_pad_value

    def forward(self, inputs: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, size[0], size[1])."""
        height, width = inputs.shape[-2:]
        if height > self.size[0] or width > self.size[1]:
            raise ValueError(
                f'BatchFixedSizePad(size={self.size}) got a batch of {height} x {width} pixels: '
                f'resize or crop the images to at most {self.size} (h, w) in the training pipeline'
            )
        return F.pad(inputs, (0, self.size[1] - width, 0, self.size[0] - height), value=self.img_pad_value)


@MODELS.register_module()
class DetDataPreprocessor(ImgDataPreprocessor):
    """Move a batch to the model's device, swap channels, normalise, and pad to the largest image.

    Images are padded at the right and bottom after normalisation, so `pad_value=0` is the mean colour. Each sample
    gets `batch_input_shape` (h, w), the size of the padded batch, and `pad_shape` (h, w), its own image size rounded
    up to a multiple of `pad_size_divisor`.

    Args:
        mean, std: Mean and standard deviation per channel, in the model's channel order (RGB with `bgr_to_rgb=True`)
            and on the 0 to 255 scale.
        pad_size_divisor: Height and width of the batch are padded to multiples of this number.
        pad_value: Fill value of the padding, after normalisation.
        bgr_to_rgb: Whether to reverse the channels of BGR images.
        rgb_to_bgr: Whether to reverse the channels of RGB images.
        batch_augments: Configs of modules (B, C, H, W) -> (B, C, H', W') that only pad or recolour; applied only in
            training.
        non_blocking: Whether to copy to the device asynchronously.
        with_pad_mask: Whether to return the padding mask. `BaseDetector` sets this.
    """

    def __init__(
        self,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        pad_size_divisor: int = 1,
        pad_value: float = 0,
        bgr_to_rgb: bool = False,
        rgb_to_bgr: bool = False,
        batch_augments: list[dict] | None = None,
        non_blocking: bool = False,
        with_pad_mask: bool = False,
    ):
        super().__init__(mean, std, pad_size_divisor, pad_value, bgr_to_rgb, rgb_to_bgr, non_blocking)
        self.with_pad_mask = with_pad_mask
        self.batch_augments = nn.ModuleList(MODELS.build(cfg) for cfg in batch_augments or [])

    def forward(self, data: dict, training: bool = False) -> dict:
        """Preprocess one batch.

        Args:
            data: `inputs`, a list of (3, H_i, W_i) uint8 images, and optionally `data_samples`.
            training: Whether to apply `batch_augments`.

        Returns:
            `inputs` (B, 3, H, W) float; `data_samples` or None; and, if `with_pad_mask` is set, `pad_mask` (B, H, W)
            bool, True = padding.
        """
        image_sizes = [tuple(image.shape[-2:]) for image in data['inputs']]
        batch = super().forward(data, training)
        if training:
            for augment in self.batch_augments:
                batch['inputs'] = augment(batch['inputs'])  # (B, 3, H, W)
        if self.with_pad_mask:
            mask = torch.ones_like(batch['inputs'][:, 0], dtype=torch.bool)  # (B, H, W)
            for row, (height, width) in zip(mask, image_sizes, strict=True):
                row[:height, :width] = False
            batch['pad_mask'] = mask
        samples, divisor = batch['data_samples'], self.pad_size_divisor
        for sample, size in zip(samples or (), image_sizes, strict=samples is not None):
            shapes = {
                'batch_input_shape': tuple(batch['inputs'].shape[-2:]),
                'pad_shape': tuple(-(-side // divisor) * divisor for side in size),
            }
            sample.set_metainfo(shapes)
        return batch
