"""Detections as tensors, the output of an exported detector."""

from typing import NamedTuple

from torch import Tensor


class Detections(NamedTuple):
    """Detections in a batch of images, sorted by descending score."""

    boxes_xyxy_px: Tensor  # (B, N, 4), in pixels of the resized, unpadded input image
    scores: Tensor  # (B, N), 0 for unused slots
    labels: Tensor  # (B, N) int64
