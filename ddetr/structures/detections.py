"""Detections as tensors, as an exported detector gives them."""

from typing import NamedTuple

from torch import Tensor


class Detections(NamedTuple):
    """What was found in a batch of images, best first."""

    boxes_xyxy_px: Tensor  # (B, N, 4), of the input image, after resizing and without padding
    scores: Tensor  # (B, N), 0 for places that are not filled
    labels: Tensor  # (B, N) int64
