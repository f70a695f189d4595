"""Tiled inference on large images at full resolution, with supervision's `InferenceSlicer`."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from mmengine.structures import InstanceData

from ddetr.structures import DetDataSample
from ddetr.utils.errors import InputError

from .results import import_supervision, to_supervision


class Tiling(NamedTuple):
    """Tiling parameters. Images no larger than a tile are processed without tiling."""

    size: int = 640  # side of a tile, in pixels
    overlap: int = (
        128  # overlap of adjacent tiles, in pixels; smaller objects are complete in at least one tile
    )
    iou_thr: float = 0.5  # overlap relative to the smaller box above which two boxes of a class are merged
    min_score: float = 0.05  # detections with lower scores are discarded before merging
    batch_size: int = 1  # number of tiles per batch

    def cuts(self, image: np.ndarray) -> bool:
        """Whether an (H, W, 3) image is larger than a tile."""
        return bool(max(image.shape[:2]) > self.size)

    def check(self) -> None:
        """Raise an InputError if the parameters are invalid or supervision is not installed."""
        if self.size < 1 or not 0 <= self.overlap < self.size:
            raise InputError(
                f'tiles of {self.size} pixels cannot overlap by {self.overlap}: choose 0 <= overlap < size.'
            )
        import_supervision()


def detect_tiled(
    detect: Callable[[Sequence[np.ndarray]], list[DetDataSample]], image: np.ndarray, tiling: Tiling
) -> DetDataSample:
    """Detect objects in all tiles of an (H, W, 3) BGR image, and merge duplicates from adjacent tiles.

    Of overlapping boxes of one class, the one with the highest score is kept. The overlap is measured relative to the
    smaller box, because a box cut off at a tile border lies inside the complete one.

    Args:
        detect: Maps tiles to their samples.
        image: Image larger than a tile.
        tiling: Tiling parameters.

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

    alone = tiling.batch_size == 1  # supervision then passes single tiles
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
