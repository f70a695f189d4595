"""Detections from predicted sets."""

import torch
from mmengine.structures import InstanceData
from torch import Tensor
from torchvision.ops import box_convert

from ddetr.structures import DetDataSample, Samples, SetPredictions


def set_pred_instances(
    preds: SetPredictions, samples: Samples, max_per_img: int, use_sigmoid: bool
) -> Samples:
    """Set each sample's `pred_instances` to the best detections of the last layer's set."""
    for sample, logits, boxes in zip(samples, preds.cls_logits[-1], preds.boxes_cxcywh_norm[-1], strict=True):
        sample.pred_instances = select_detections(logits, boxes, sample, max_per_img, use_sigmoid)
    return samples


def select_detections(
    cls_logits: Tensor, boxes_cxcywh_norm: Tensor, sample: DetDataSample, max_per_img: int, use_sigmoid: bool
) -> InstanceData:
    """The best detections of one image, best first, in pixels of the original image.

    Sigmoid heads choose among all (query, class) pairs, so that a query can give several detections
    (Zhu et al., 2021, section 5); softmax heads take each query's best class (Carion et al., 2020, section 4).

    Args:
        cls_logits: (Q, K), softmax heads (Q, K + 1).
        boxes_cxcywh_norm: (Q, 4).
        sample: Has `img_shape` and, where the image was resized, `scale_factor`.
        max_per_img: Largest number of detections.
        use_sigmoid: The kind of head.

    Returns:
        `bboxes` (N, 4), `scores` (N,), `labels` (N,) and `query_index` (N,), the query of each detection.
    """
    logits, boxes = cls_logits.float(), boxes_cxcywh_norm.float()
    if use_sigmoid:
        num_classes = logits.shape[-1]
        scores, index = logits.sigmoid().flatten().topk(min(max_per_img, logits.numel()))
        labels, query = index % num_classes, index // num_classes
    else:
        best, best_label = logits.softmax(-1)[:, :-1].max(-1)  # (Q,)
        scores, query = best.topk(min(max_per_img, len(best)))
        labels = best_label[query]
    size = boxes.new_tensor(sample.img_shape[1::-1] * 2)  # w h w h
    boxes_px = (box_convert(boxes[query], 'cxcywh', 'xyxy') * size).clamp(min=0)
    boxes_px = sample.to_original(torch.minimum(boxes_px, size))
    return InstanceData(bboxes=boxes_px, scores=scores, labels=labels, query_index=query)
