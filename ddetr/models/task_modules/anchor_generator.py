"""Anchors, the reference boxes of the region proposal network (Ren et al., 2015, section 3.1.1)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ddetr.registry import TASK_UTILS


@TASK_UTILS.register_module()
class AnchorGenerator:
    """Generates anchors of every scale and ratio at every cell of every level.

    Args:
        strides: Stride of each level, in pixels.
        ratios: Aspect ratios, height / width.
        scales: Side lengths of square anchors as multiples of the level's base size.
        base_sizes: Base size of each level, in pixels; None uses the strides.
        center_offset: Offset of anchor centres from the top left corner of their cell, in strides.
        round_base_anchors: Whether to round the corners of the anchors at the origin, as torchvision does.
        infer_strides: Whether to use `input size // feature map size` as strides, as torchvision does, instead of
            `strides`. They differ if the input size is not a multiple of the coarsest stride.
    """

    def __init__(
        self,
        strides: Sequence[int],
        ratios: Sequence[float],
        scales: Sequence[float],
        base_sizes: Sequence[float] | None = None,
        center_offset: float = 0.0,
        round_base_anchors: bool = False,
        infer_strides: bool = False,
    ) -> None:
        self.strides = tuple(strides)
        self.center_offset, self.infer_strides = center_offset, infer_strides
        sizes = self.strides if base_sizes is None else base_sizes
        self.base_anchors = [self._around_origin(size, ratios, scales) for size in sizes]  # L x (A, 4)
        if round_base_anchors:
            self.base_anchors = [anchors.round() for anchors in self.base_anchors]

    @property
    def num_base_anchors(self) -> int:
        """Number of anchors per cell, A."""
        return len(self.base_anchors[0])

    @staticmethod
    def _around_origin(size: float, ratios: Sequence[float], scales: Sequence[float]) -> Tensor:
        """Base anchors (A, 4): all scales of the first ratio, all scales of the second, ..."""
        root = torch.tensor(ratios, dtype=torch.float32).sqrt()[:, None]  # (ratios, 1)
        side = size * torch.tensor(scales, dtype=torch.float32)[None]  # (1, scales)
        half_w, half_h = (side / root).flatten() / 2, (side * root).flatten() / 2
        return torch.stack([-half_w, -half_h, half_w, half_h], dim=-1)

    def grid_anchors(
        self, level_sizes: Sequence[tuple[int, int]], input_size: tuple[int, int], device: torch.device
    ) -> list[Tensor]:
        """Anchors for all cells of all levels.

        Args:
            level_sizes: (h, w) of each feature map.
            input_size: (h, w) of the padded images.
            device: Device of the anchors.

        Returns:
            L x (h * w * A, 4) float32, x1 y1 x2 y2 in pixels, in row-major order of the cells.

        Raises:
            ValueError: The number of levels differs from the number of strides.
        """
        if len(level_sizes) != len(self.strides):
            raise ValueError(
                f'AnchorGenerator has {len(self.strides)} strides {self.strides}, got {len(level_sizes)} levels'
            )
        levels = []
        for base, stride, (h, w) in zip(self.base_anchors, self.strides, level_sizes, strict=True):
            steps = (input_size[0] // h, input_size[1] // w) if self.infer_strides else (stride, stride)
            rows_and_columns = (
                (torch.arange(count, device=device) + self.center_offset) * step
                for count, step in zip((h, w), steps, strict=True)
            )
            y, x = torch.meshgrid(*rows_and_columns, indexing='ij')
            centers = torch.stack([x, y, x, y], dim=-1).reshape(-1, 1, 4)  # (h * w, 1, 4)
            levels.append((centers + base.to(device)).reshape(-1, 4))
        return levels
