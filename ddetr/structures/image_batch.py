"""Padded image batch, the input of every detector."""

from typing import NamedTuple

from torch import Tensor


class ImageBatch(NamedTuple):
    """Images of different sizes, padded at the right and the bottom to one size. Made by `DetDataPreprocessor`."""

    images: Tensor  # (B, 3, H, W) normalised
    pad_mask: Tensor  # (B, H, W) bool, True = padding

    @property
    def sizes_hw(self) -> list[tuple[int, int]]:
        """Unpadded (h, w) of each image."""
        heights, widths = (~self.pad_mask[:, :, 0]).sum(1), (~self.pad_mask[:, 0]).sum(1)
        return list(zip(heights.tolist(), widths.tolist(), strict=True))
