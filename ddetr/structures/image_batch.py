"""The padded batch of images that every detector takes."""

from typing import NamedTuple

import torch
from torch import Tensor


class ImageBatch(NamedTuple):
    """Images of different sizes, padded at the right and the bottom to one size. Made by `DetDataPreprocessor`."""

    images: Tensor  # (B, 3, H, W) normalised
    pad_mask: Tensor  # (B, H, W) bool, True = padding

    @property
    def sizes_hw(self) -> list[tuple[int, int]]:
        """The (h, w) of each image without its padding."""
        return [(height, width) for height, width in self.size_tensor.tolist()]

    @property
    def size_tensor(self) -> Tensor:
        """`sizes_hw` as (B, 2) int64 on the images' device, which an export can trace for any batch."""
        return torch.stack([(~self.pad_mask[:, :, 0]).sum(1), (~self.pad_mask[:, 0]).sum(1)], 1)
