"""Large images in overlapping tiles, each detected at full resolution, by supervision's `InferenceSlicer`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.structures import InstanceData

from ddetr.structures import DetDataSample
from ddetr.utils.errors import InputError

from .results import import_supervision, to_supervision


class Tiling(NamedTuple):
    """How images are cut. An image that is no larger than a tile is detected as without tiling."""

    size: int = 640  # side of a tile, pixels
    overlap: int = 128  # of neighbouring tiles, pixels; objects up to this size are whole in one of them
    iou_thr: float = (
        0.5  # of two boxes of a class, the share of the smaller one inside the other that makes them one
    )
    min_score: float = 0.05  # lower scores are dropped before tiles are joined
    batch_size: int = 1  # tiles that are detected together

    def cuts(self, image: np.ndarray) -> bool:
        """Whether an (H, W, 3) image is larger than a tile."""
        return bool(max(image.shape[:2]) > self.size)

    def check(self) -> None:
        """Raise an InputError unless these tiles can be made."""
        if self.size < 1 or not 0 <= self.overlap < self.size:
            raise InputError(
                f'tiles of {self.size} pixels cannot overlap by {self.overlap}: choose 0 <= overlap < size.'
            )
        import_supervision()


def detect_tiled(
    detect: Callable[[Sequence[np.ndarray]], list[DetDataSample]], image: np.ndarray, tiling: Tiling
) -> DetDataSample:
    """Detect in all tiles of an (H, W, 3) BGR image, and join what neighbouring tiles found twice.

    Of boxes of one class that overlap, the best remains: a box that a tile's border cuts lies inside the whole one.

    Args:
        detect: From tiles to their samples.
        image: The image, larger than a tile.
        tiling: See there.

    Returns:
        A sample with `pred_instances` in pixels of the image, best first.
    """
    supervision = import_supervision()

    def detect_tiles(tiles: list[np.ndarray]) -> list[Any]:
        found = []
        for sample in detect(tiles):
            instances = sample.pred_instances
            found.append(to_supervision(instances[instances.scores >= tiling.min_score]))
        return found

    alone = tiling.batch_size == 1  # then supervision hands over single tiles
    slicer = supervision.InferenceSlicer(
        callback=(lambda tile: detect_tiles([tile])[0]) if alone else detect_tiles,
        slice_wh=tiling.size,
        overlap_wh=tiling.overlap,
        overlap_filter=supervision.OverlapFilter.NON_MAX_SUPPRESSION,
        overlap_metric=supervision.OverlapMetric.IOS,
        iou_threshold=tiling.iou_thr,
        batch_size=tiling.batch_size,
    )
    found = slicer(image)
    order = np.argsort(-found.confidence, kind='stable')
    instances = InstanceData(
        bboxes=torch.from_numpy(np.asarray(found.xyxy, np.float32)[order]),
        scores=torch.from_numpy(np.asarray(found.confidence, np.float32)[order]),
        labels=torch.from_numpy(np.asarray(found.class_id, np.int64)[order]),
    )
    sample = DetDataSample(metainfo={'ori_shape': image.shape[:2]})
    sample.pred_instances = instances
    return sample
