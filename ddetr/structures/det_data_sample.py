"""Per-image data, from the pipeline to the metric."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement
from torch import Tensor

from ddetr.utils.seeding import derive_seed


@dataclass(frozen=True)  # not a NamedTuple: mmengine rebuilds tuples when it gathers results
class Annotations:
    """Ground truth of one image for the metrics, as stored in the dataset, in pixels of the original image."""

    labels: np.ndarray  # (N,)
    boxes_xywh_px: np.ndarray  # (N, 4) float64
    areas: np.ndarray  # (N,) float64, mask areas if the dataset has masks, otherwise box areas
    crowd: np.ndarray  # (N,) bool

    @classmethod
    def of(cls, instances: Sequence[dict[str, Any]]) -> 'Annotations':
        """Convert dataset `instances`; `bbox_xywh`, `area` and `ignore_flag` are optional."""
        boxes = [i.get('bbox_xywh') or _xywh(*i['bbox']) for i in instances]
        return cls(
            labels=np.array([i['bbox_label'] for i in instances], dtype=np.int64),
            boxes_xywh_px=np.array(boxes, dtype=np.float64).reshape(-1, 4),
            areas=np.array([i.get('area', w * h) for i, (_, _, w, h) in zip(instances, boxes, strict=True)]),
            crowd=np.array([i.get('ignore_flag', 0) for i in instances], dtype=bool),
        )


def _xywh(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    return [x1, y1, x2 - x1, y2 - y1]


class DetDataSample(BaseDataElement):  # type: ignore[misc]  # mmengine is untyped
    """Ground truth, proposals and predictions of one image.

    Boxes are plain (N, 4) float32 tensors in x1 y1 x2 y2 format. `gt_instances`, `ignored_instances` and
    `proposals` are in pixels of the network's input image, after all transforms; `pred_instances` are in pixels of
    the original image. `to_original` maps the former to the latter.

    The fields are `InstanceData` and exist only once they are set.

    Attributes:
        gt_instances: `bboxes` (N, 4), `labels` (N,) int64.
        ignored_instances: Crowd regions, also with `bboxes` and `labels`; neither targets nor background.
        proposals: `bboxes` (N, 4) and `scores` (N,) from a first stage.
        pred_instances: `bboxes` (N, 4), `labels` (N,), `scores` (N,), sorted by score. Set predictors add
            `query_index` (N,), the decoder query of each detection.

    Metainfo: `img_id`, `img_path`, `ori_shape` (h, w), `img_shape` (h, w) after the pipeline, `pad_shape`,
    `batch_input_shape` (h, w) of the padded batch, `scale_factor` (w, h) = resized / original, `flip`,
    `flip_direction`, `annotations` (the dataset's `Annotations`, for the metric) and, in training, `draw_seed`.
    """

    @property
    def ignored_boxes(self) -> Tensor | None:
        """Crowd boxes (N, 4), or None if there are none."""
        return self.ignored_instances.bboxes if 'ignored_instances' in self else None

    def generator(self, purpose: str, device: torch.device) -> torch.Generator | None:
        """Random generator for this sample, independent of its batch; None without `draw_seed`."""
        if 'draw_seed' not in self:
            return None
        return torch.Generator(device).manual_seed(derive_seed(self.draw_seed, purpose))

    def to_original(self, boxes_xyxy_px: Tensor) -> Tensor:
        """Map boxes (N, 4) from the resized to the original image. Flips and crops are not undone."""
        if 'scale_factor' not in self:
            return boxes_xyxy_px
        return boxes_xyxy_px / boxes_xyxy_px.new_tensor(self.scale_factor).repeat(2)


Samples = list[DetDataSample]
"""Samples of a batch, one per image."""
