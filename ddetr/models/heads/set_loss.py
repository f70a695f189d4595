"""Matching, losses and selection of predicted sets, which both DETR heads call."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from mmengine.dist import all_reduce
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torchvision.ops import box_convert

from ddetr.models.task_modules import HungarianAssigner
from ddetr.structures import DetDataSample, Matching, SetPredictions, SetTargets


class SetLosses(NamedTuple):
    """The three terms of the set loss (DETR, section 3.1; Deformable DETR, appendix A.3)."""

    loss_cls: nn.Module
    loss_bbox: nn.Module
    loss_iou: nn.Module


class Normalisers(NamedTuple):
    """What the losses of one batch are divided by, averaged over all processes."""

    classification: Tensor  # (), matched queries, plus down-weighted background ones in softmax heads
    boxes: Tensor  # (), matched queries


def losses_of_all_layers(
    preds: SetPredictions,
    samples: Sequence[DetDataSample],
    assigner: HungarianAssigner | None,
    losses: SetLosses,
) -> dict[str, Tensor]:
    """Losses of the last layer (`loss_*`), of the others (`d{i}.loss_*`) and of the proposals (`enc_loss_*`).

    Raises:
        ValueError: there is no assigner, because the head was built without `train_cfg`.
    """
    if assigner is None:
        raise ValueError('this head was built without train_cfg.assigner: it can predict but not train')
    targets = make_targets(samples, preds.cls_logits.device)
    shapes = [sample.img_shape for sample in samples]
    *auxiliary, result = set_losses(
        preds.cls_logits, preds.boxes_cxcywh_norm, targets, shapes, assigner, losses
    )
    for i, layer in enumerate(auxiliary):
        result |= {f'd{i}.{name}': value for name, value in layer.items()}
    if preds.proposals is not None:
        objects = [SetTargets(torch.zeros_like(t.labels), t.boxes_cxcywh_norm) for t in targets]
        logits, boxes = (prediction[None] for prediction in preds.proposals)
        layer = set_losses(logits, boxes, objects, shapes, assigner, losses)[0]
        result |= {f'enc_{name}': value for name, value in layer.items()}
    return result


def make_targets(samples: Sequence[DetDataSample], device: torch.device) -> list[SetTargets]:
    """The samples' boxes as cx cy w h, relative to each unpadded image."""
    targets = []
    for sample in samples:
        gt = sample.gt_instances
        boxes = box_convert(gt.bboxes.to(device), 'xyxy', 'cxcywh')  # (G, 4)
        targets.append(SetTargets(gt.labels.to(device), boxes / _sides_whwh(sample.img_shape, boxes)))
    return targets


def set_losses(
    cls_logits: Tensor,
    boxes_cxcywh_norm: Tensor,
    targets: list[SetTargets],
    img_shapes: list[tuple[int, int]],
    assigner: HungarianAssigner,
    losses: SetLosses,
) -> list[dict[str, Tensor]]:
    """Match each decoder layer's set with the ground truth and compute its losses.

    Args:
        cls_logits: (N, B, Q, K or K + 1).
        boxes_cxcywh_norm: (N, B, Q, 4).
        targets: B ground truths.
        img_shapes: B (h, w) of the unpadded images; IoUs are computed in their pixels.
        assigner: matches queries and targets.
        losses: the three terms.

    Returns:
        For each of the N layers `loss_cls`, `loss_bbox`, `loss_iou`.
    """
    cls_logits, boxes_cxcywh_norm = cls_logits.float(), boxes_cxcywh_norm.float()
    by_image = [assigner.assign(cls_logits[:, b], boxes_cxcywh_norm[:, b], t) for b, t in enumerate(targets)]
    norm = _normalisers(by_image, cls_logits, losses.loss_cls)
    return [
        _layer_losses(cls_logits[n], boxes_cxcywh_norm[n], matchings, targets, img_shapes, losses, norm)
        for n, matchings in enumerate(zip(*by_image, strict=True))
    ]


def _layer_losses(
    cls_logits: Tensor,  # (B, Q, K)
    boxes: Tensor,  # (B, Q, 4)
    matchings: tuple[Matching, ...],
    targets: list[SetTargets],
    img_shapes: list[tuple[int, int]],
    losses: SetLosses,
    norm: Normalisers,
) -> dict[str, Tensor]:
    background = cls_logits.shape[-1] if losses.loss_cls.use_sigmoid else cls_logits.shape[-1] - 1
    labels = torch.full(
        cls_logits.shape[:2], background, dtype=torch.int64, device=cls_logits.device
    )  # (B, Q)
    for b, (match, target) in enumerate(zip(matchings, targets, strict=True)):
        labels[b, match.query_index] = target.labels[match.target_index]
    pairs = list(zip(matchings, targets, img_shapes, strict=True))
    pred = torch.cat([boxes[b, match.query_index] for b, match in enumerate(matchings)])  # (P, 4)
    true = torch.cat([target.boxes_cxcywh_norm[match.target_index] for match, target, _ in pairs])  # (P, 4)
    sides = torch.cat(
        [_sides_whwh(shape, pred).expand(len(match.query_index), 4) for match, _, shape in pairs]
    )
    pred_px, true_px = (box_convert(b * sides, 'cxcywh', 'xyxy') for b in (pred, true))
    return {
        'loss_cls': losses.loss_cls(
            cls_logits.flatten(0, 1), labels.flatten(), avg_factor=norm.classification
        ),
        'loss_bbox': losses.loss_bbox(pred, true, avg_factor=norm.boxes),
        # in pixels: the losses' epsilon would distort the IoU of small boxes in normalised units
        'loss_iou': losses.loss_iou(pred_px, true_px, avg_factor=norm.boxes),
    }


def _normalisers(by_image: list[list[Matching]], cls_logits: Tensor, loss_cls: nn.Module) -> Normalisers:
    """Every layer matches as many pairs, so that the first one's count serves all.

    The numbers are averaged over the processes, so that an object weighs the same on each of them.
    """
    _, batch, queries, _ = cls_logits.shape
    matched = sum(len(matchings[0].query_index) for matchings in by_image)
    bg_weight = getattr(loss_cls, 'bg_cls_weight', None)
    if loss_cls.use_sigmoid:
        bg_weight = 0.0  # the focal loss is divided by the objects alone
    elif bg_weight is None:
        bg_weight = 1.0
    counts = cls_logits.new_tensor([matched + (batch * queries - matched) * bg_weight, matched])
    all_reduce(counts, op='mean')
    return Normalisers(*counts.clamp(min=1).unbind())


def set_pred_instances(
    preds: SetPredictions, samples: list[DetDataSample], max_per_img: int, use_sigmoid: bool
) -> list[DetDataSample]:
    """Set each sample's `pred_instances` to the best detections of the last layer's set."""
    for sample, logits, boxes in zip(samples, preds.cls_logits[-1], preds.boxes_cxcywh_norm[-1], strict=True):
        sample.pred_instances = select_detections(logits, boxes, sample, max_per_img, use_sigmoid)
    return samples


def select_detections(
    cls_logits: Tensor, boxes_cxcywh_norm: Tensor, sample: DetDataSample, max_per_img: int, use_sigmoid: bool
) -> InstanceData:
    """The best detections of one image, best first, in pixels of the original image.

    Sigmoid heads choose among all (query, class) pairs, so that a query can give several detections
    (Deformable DETR, section 5); softmax heads take each query's best class (DETR, section 4).

    Args:
        cls_logits: (Q, K), softmax heads (Q, K + 1).
        boxes_cxcywh_norm: (Q, 4).
        sample: tells `img_shape` and, where the image was resized, `scale_factor`.
        max_per_img: at most so many detections.
        use_sigmoid: the kind of head.
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
    sides = _sides_whwh(sample.img_shape, boxes)
    boxes_px = (box_convert(boxes[query], 'cxcywh', 'xyxy') * sides).clamp(min=0)
    boxes_px = torch.minimum(boxes_px, sides)
    if 'scale_factor' in sample:
        boxes_px = boxes_px / boxes_px.new_tensor(sample.scale_factor).repeat(2)
    return InstanceData(bboxes=boxes_px, scores=scores, labels=labels)


def _sides_whwh(img_shape: tuple[int, int], like: Tensor) -> Tensor:
    """(h, w, ...) -> (4,) w h w h."""
    height, width = img_shape[:2]
    return like.new_tensor([width, height, width, height])
