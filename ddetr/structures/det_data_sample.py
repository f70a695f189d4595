"""Per-image data, from the pipeline to the metric."""

from mmengine.structures import BaseDataElement
from torch import Tensor


class DetDataSample(BaseDataElement):
    """One image's ground truth, proposals and predictions.

    Boxes are plain tensors, (N, 4) float32, x1 y1 x2 y2 in pixels. The field decides of which image: always the
    network's input image, after all transforms, for `gt_instances`, `ignored_instances` and `proposals`; always the
    original image for `pred_instances`. `to_original` maps the former to the latter.

    The fields are `InstanceData`; a sample has those that have been set so far.

    Attributes:
        gt_instances: `bboxes` (N, 4), `labels` (N,) int64.
        ignored_instances: crowd regions, `bboxes` and `labels` alike; they are neither targets nor background.
        proposals: `bboxes` (N, 4) and `scores` (N,) of a first stage.
        pred_instances: `bboxes` (N, 4), `labels` (N,), `scores` (N,), best first.

    Metainfo: `img_id`, `img_path`, `ori_shape` (h, w), `img_shape` (h, w) after the pipeline, `pad_shape`,
    `batch_input_shape` (h, w) of the padded batch, `scale_factor` (w, h) = resized / original, `flip`,
    `flip_direction`, `instances`: the dataset's annotations in pixels of the original image, for the metric.
    """

    def to_original(self, boxes_xyxy_px: Tensor) -> Tensor:
        """Boxes (N, 4) of the resized image in pixels of the original image; flips and crops are not undone."""
        if 'scale_factor' not in self:
            return boxes_xyxy_px
        return boxes_xyxy_px / boxes_xyxy_px.new_tensor(self.scale_factor).repeat(2)


Samples = list[DetDataSample]
"""A batch's samples, one per image."""
