"""From the loader's lists of images to the padded, normalised batch that a detector takes."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from mmengine.model import ImgDataPreprocessor
from torch import Tensor, nn

from ddetr.registry import MODELS


@MODELS.register_module()
class BatchFixedSizePad(nn.Module):
    """Pad every batch at the right and the bottom to `size` (h, w) in pixels, for large-scale jittering.

    `img_pad_value` is written into the padding, after normalisation. A larger image is a ValueError.
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
    """Move a batch to the model's device, swap channels, normalise, pad to the largest image.

    Padding stands at the right and the bottom and is written after normalisation, so `pad_value=0` is the
    mean colour. Each sample learns `batch_input_shape` (h, w), the size of the whole batch, and `pad_shape`
    (h, w), its own image rounded up to `pad_size_divisor`.

    Args:
        mean, std: per channel, in the order that the model sees (RGB with `bgr_to_rgb=True`), on the scale 0 to 255.
        pad_size_divisor: the batch's height and width become multiples of it.
        pad_value: see above.
        bgr_to_rgb: reverse the channels of the images, which the pipeline reads as BGR.
        rgb_to_bgr: the same reversal, for pipelines that read RGB.
        batch_augments: configs of modules (B, C, H, W) -> (B, C, H', W') that only pad or recolour, in training only.
        non_blocking: asynchronous copies to the device.
        with_pad_mask: give the padding mask, which `BaseDetector` asks for; other models need not know of it.
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
        """Make the padded batch of `inputs`, a list of (3, H_i, W_i) uint8 images, and optionally `data_samples`.

        Returns:
            `inputs` (B, 3, H, W) float; `data_samples`, or None; with `with_pad_mask`, `pad_mask` (B, H, W) bool,
            True = padding.
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
