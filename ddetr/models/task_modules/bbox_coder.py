"""Encode boxes as deltas from reference boxes (Girshick et al., 2014, appendix C)."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_convert, clip_boxes_to_image

from ddetr.registry import TASK_UTILS


@TASK_UTILS.register_module()
class DeltaXYWHBBoxCoder:
    """Encodes boxes as centre offsets relative to the reference size and log ratios of width and height.

    Args:
        target_means: Subtracted from the deltas (dx, dy, dw, dh).
        target_stds: Divisors of the centred deltas, the inverse of `weights` in torchvision's coder.
        clip_border: Whether to clip decoded boxes to the image if its size is given.
        wh_ratio_clip: Limit of the factor (or its inverse) by which width and height change.
        clip_shrinking: Whether to limit shrinking as well as growth; torchvision limits only growth.
    """

    def __init__(
        self,
        target_means: Sequence[float] = (0.0, 0.0, 0.0, 0.0),
        target_stds: Sequence[float] = (1.0, 1.0, 1.0, 1.0),
        clip_border: bool = True,
        wh_ratio_clip: float = 16 / 1000,
        clip_shrinking: bool = True,
    ) -> None:
        self.means, self.stds = tuple(target_means), tuple(target_stds)
        self.clip_border = clip_border
        self.max_log_ratio = abs(math.log(wh_ratio_clip))
        self.clip_shrinking = clip_shrinking

    def encode(self, boxes: Tensor, targets: Tensor) -> Tensor:
        """Deltas from `boxes` (N, 4) to `targets` (N, 4), both x1 y1 x2 y2 -> (N, 4)."""
        from_xy, from_wh = box_convert(boxes.float(), 'xyxy', 'cxcywh').split(2, dim=-1)
        to_xy, to_wh = box_convert(targets.float(), 'xyxy', 'cxcywh').split(2, dim=-1)
        deltas = torch.cat([(to_xy - from_xy) / from_wh, (to_wh / from_wh).log()], dim=-1)
        return (deltas - deltas.new_tensor(self.means)) / deltas.new_tensor(self.stds)

    def decode(self, boxes: Tensor, deltas: Tensor, image_size: tuple[int, int] | None = None) -> Tensor:
        """Inverse of `encode`: (N, 4), (N, 4) -> (N, 4), clipped to `image_size` (h, w) if given."""
        deltas = deltas * deltas.new_tensor(self.stds) + deltas.new_tensor(self.means)
        floor = -self.max_log_ratio if self.clip_shrinking else None
        from_xy, from_wh = box_convert(boxes.to(deltas.dtype), 'xyxy', 'cxcywh').split(2, dim=-1)
        to_wh = deltas[:, 2:].clamp(min=floor, max=self.max_log_ratio).exp() * from_wh
        decoded = box_convert(torch.cat([from_xy + deltas[:, :2] * from_wh, to_wh], dim=-1), 'cxcywh', 'xyxy')
        if image_size is not None and self.clip_border:
            decoded = clip_boxes_to_image(decoded, image_size)
        return decoded
