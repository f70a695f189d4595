"""Padded image batch, the input of every detector."""

from typing import NamedTuple

import torch
from torch import Tensor


class ImageBatch(NamedTuple):
    """Images padded at the right and bottom to a common size. Created by `DetDataPreprocessor`."""

    images: Tensor  # (B, 3, H, W) normalised
    pad_mask: Tensor  # (B, H, W) bool, True = padding

    @property
    def sizes_hw(self) -> list[tuple[int, int]]:
        """Unpadded (h, w) of each image."""
        return [(height, width) for height, width in self.size_tensor.tolist()]

    @property
    def size_tensor(self) -> Tensor:
        """`sizes_hw` as a (B, 2) int64 tensor on the images' device, traceable for any batch size."""
        return torch.stack([(~self.pad_mask[:, :, 0]).sum(1), (~self.pad_mask[:, 0]).sum(1)], 1)
