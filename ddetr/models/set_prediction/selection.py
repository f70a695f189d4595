"""Select detections from set predictions."""

import torch
from mmengine.structures import InstanceData
from torch import Tensor
from torchvision.ops import box_convert

from ddetr.structures import Detections, Samples, SetPredictions


def set_pred_instances(
    preds: SetPredictions, samples: Samples, max_per_img: int, use_sigmoid: bool
) -> Samples:
    """Set `pred_instances` of each sample to the top detections of the last layer, best first.

    They have `bboxes` (N, 4) in pixels of the original image, `scores` (N,), `labels` (N,) and `query_index` (N,), the
    query of each detection.
    """
    sizes_hw = torch.tensor([sample.img_shape[:2] for sample in samples], device=preds.cls_logits.device)
    found, query = select_detections(preds, sizes_hw, max_per_img, use_sigmoid)
    for i, sample in enumerate(samples):
        boxes, scores, labels = (field[i] for field in found)
        sample.pred_instances = InstanceData(
            bboxes=sample.to_original(boxes), scores=scores, labels=labels, query_index=query[i]
        )
    return samples


def select_detections(
    preds: SetPredictions, sizes_hw: Tensor, max_per_img: int, use_sigmoid: bool
) -> tuple[Detections, Tensor]:
    """Select the top detections of the last layer, best first, in pixels of the unpadded input images.

    Sigmoid heads rank all (query, class) pairs, so one query can give several detections (Zhu et al., 2021,
    section 5). Softmax heads use the best class of each query (Carion et al., 2020, section 4).

    Args:
        preds: Predictions for B images.
        sizes_hw: (B, 2), unpadded image sizes.
        max_per_img: Maximum number of detections per image.
        use_sigmoid: Whether the head classifies with sigmoid instead of softmax.

    Returns:
        The detections, and the query index (B, N) of each.
    """
    logits, boxes = preds.cls_logits[-1].float(), preds.boxes_cxcywh_norm[-1].float()  # (B, Q, K), (B, Q, 4)
    queries, num_classes = logits.shape[1:]
    if use_sigmoid:
        scores, index = logits.sigmoid().flatten(1).topk(min(max_per_img, queries * num_classes), dim=1)
        labels, query = index % num_classes, index // num_classes
    else:
        best, best_label = logits.softmax(-1)[..., :-1].max(-1)  # (B, Q)
        scores, query = best.topk(min(max_per_img, queries), dim=1)
        labels = best_label.gather(1, query)
    size = sizes_hw.to(boxes.dtype).flip(1).repeat(1, 2)[:, None]  # (B, 1, 4), w h w h
    chosen = boxes.gather(1, query[..., None].expand(-1, -1, 4))
    boxes_px = (box_convert(chosen, 'cxcywh', 'xyxy') * size).clamp(min=0.0)
    return Detections(torch.minimum(boxes_px, size), scores, labels), query
