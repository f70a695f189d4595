"""Which parts of a batch, and of its feature maps, are padding."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ddetr.structures import DetDataSample


def pad_mask_of(samples: Sequence[DetDataSample], device: torch.device) -> Tensor:
    """(B, H, W) bool of the padded batch, True = padding."""
    height, width = samples[0].batch_input_shape
    mask = torch.ones(len(samples), height, width, dtype=torch.bool, device=device)
    for row, sample in zip(mask, samples, strict=True):
        row[: sample.img_shape[0], : sample.img_shape[1]] = False
    return mask


def pad_mask_on(feat: Tensor, image_mask: Tensor) -> Tensor:
    """`image_mask` (B, H, W) at the resolution of `feat` (B, C, H_l, W_l): (B, H_l, W_l), the nearest pixel's."""
    return F.interpolate(image_mask[None].float(), size=feat.shape[-2:])[0].bool()
