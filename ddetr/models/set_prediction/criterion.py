"""Losses of predicted sets: ground truth, matching, and the terms that are computed on the matched pairs."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from mmengine.dist import is_distributed
from mmengine.model import BaseModule
from torch import Tensor, nn
from torchvision.ops import box_convert, box_iou

from ddetr.models.task_modules import HungarianAssigner
from ddetr.registry import MODELS, TASK_UTILS
from ddetr.structures import (
    NO_OBJECT,
    Detections,
    ImageBatch,
    Matched,
    Matching,
    QueryGroup,
    Samples,
    SetPredictions,
    SetTargets,
)
from ddetr.structures.effective_batch import ACTIVE, EffectiveBatch, gather_batch
from ddetr.utils.errors import ConfigError

from .selection import select_detections, set_pred_instances

Extras = Mapping[str, Tensor]  # (N, B, Q, ...) each


class LossTerm(Protocol):
    """A term of the set loss. Configs name it in a head's `loss_terms`; it is registered in `MODELS`.

    Attributes:
        needs: Names of `SetPredictions.extras` that the term reads; a head that does not predict them is refused.
        use_sigmoid: Of a classification term, whether the head classifies with sigmoids. Other terms have no such
            attribute.
    """

    needs: tuple[str, ...]

    def __call__(self, matched: Matched) -> dict[str, Tensor]:
        """Scalar losses of one group in one decoder layer; those with `loss` in their name are summed."""


@MODELS.register_module()
class ClassTerm(nn.Module):
    """Classification loss over all queries of a group, a registered one of logits and labels such as `FocalLoss`.

    It is divided by the number of pairs with sigmoids (Zhu et al., 2021, appendix A.3), and with softmax by the summed
    weights of all queries, where those without an object have `bg_cls_weight` (Carion et al., 2020, section 3.1).
    `name` is the result's key.
    """

    needs = ()

    def __init__(self, loss: dict, name: str = 'loss_cls') -> None:
        super().__init__()
        self.loss, self.name = MODELS.build(loss), name
        self.use_sigmoid = bool(self.loss.use_sigmoid)

    def forward(self, matched: Matched) -> dict[str, Tensor]:
        """See `LossTerm`."""
        background = matched.cls_logits.shape[-1] - (not self.use_sigmoid)
        labels = matched.labels.masked_fill(matched.labels == NO_OBJECT, background)
        total: float = matched.num_pairs
        if not self.use_sigmoid:
            bg_weight = getattr(self.loss, 'bg_cls_weight', None)
            total = total + (matched.num_queries - total) * (1.0 if bg_weight is None else bg_weight)
        avg_factor = max(total, 1.0) / matched.num_parts
        return {
            self.name: self.loss(matched.cls_logits.flatten(0, 1), labels.flatten(), avg_factor=avg_factor)
        }


@MODELS.register_module()
class VarifocalTerm(nn.Module):
    """Classification by sigmoids that learn the IoU of a matched query's box (Zhang et al., "VarifocalNet", 2021).

    Queries without an object have the weight alpha * p^gamma. `name` is the result's key.
    """

    needs = ()
    use_sigmoid = True

    def __init__(
        self, alpha: float = 0.75, gamma: float = 2.0, loss_weight: float = 1.0, name: str = 'loss_cls'
    ) -> None:
        super().__init__()
        self.alpha, self.gamma, self.loss_weight, self.name = alpha, gamma, loss_weight, name

    def forward(self, matched: Matched) -> dict[str, Tensor]:
        """See `LossTerm`."""
        logits, index = matched.cls_logits, (matched.image_index, matched.query_index)
        target = torch.zeros_like(logits)
        target[index[0], index[1], matched.labels[index]] = matched.iou()
        prob = logits.detach().sigmoid()
        weight = torch.where(target > 0, target, self.alpha * prob**self.gamma)
        loss = F.binary_cross_entropy_with_logits(logits, target, weight, reduction='sum')
        return {self.name: self.loss_weight * loss / matched.avg_factor}


@MODELS.register_module()
class AlignTerm(nn.Module):
    """Classification by sigmoids that learn how well a matched query's box fits (Cai et al., 2023, arXiv:2304.07527).

    The target of a matched query is p^alpha * IoU^(1 - alpha) of its own probability p, without gradient, with the
    weight 1: the IoU-aware BCE of section 3.2. Queries without an object have the weight p^gamma. `name` is the
    result's key.
    """

    needs = ()
    use_sigmoid = True

    def __init__(
        self, alpha: float = 0.25, gamma: float = 2.0, loss_weight: float = 1.0, name: str = 'loss_cls'
    ) -> None:
        super().__init__()
        self.alpha, self.gamma, self.loss_weight, self.name = alpha, gamma, loss_weight, name

    def forward(self, matched: Matched) -> dict[str, Tensor]:
        """See `LossTerm`."""
        logits = matched.cls_logits
        pairs = (
            matched.image_index,
            matched.query_index,
            matched.labels[matched.image_index, matched.query_index],
        )
        prob = logits.detach().sigmoid()
        target, weight = torch.zeros_like(logits), prob**self.gamma
        # as in the paper's code, no target below 0.01: a first, poor box still teaches the class
        target[pairs] = (prob[pairs] ** self.alpha * matched.iou() ** (1 - self.alpha)).clamp(min=0.01)
        weight[pairs] = 1.0
        loss = F.binary_cross_entropy_with_logits(logits, target, weight, reduction='sum')
        return {self.name: self.loss_weight * loss / matched.avg_factor}


@MODELS.register_module()
class BoxTerm(nn.Module):
    """Loss of the matched pairs' boxes, a registered one such as `L1Loss`, divided by the number of pairs.

    With `in_pixels` it compares x1 y1 x2 y2 in pixels of the unpadded image, as the IoU losses want it: their epsilon
    would distort the IoU of small boxes in normalised units. Otherwise cx cy w h in 0..1. `name` is the result's key.
    """

    needs = ()

    def __init__(self, loss: dict, name: str = 'loss_bbox', in_pixels: bool = False) -> None:
        super().__init__()
        self.loss, self.name, self.in_pixels = MODELS.build(loss), name, in_pixels

    def forward(self, matched: Matched) -> dict[str, Tensor]:
        """See `LossTerm`."""
        pairs = (matched.pred_boxes_cxcywh_norm, matched.true_boxes_cxcywh_norm)
        if self.in_pixels:
            pairs = (matched.pred_boxes_xyxy_px, matched.true_boxes_xyxy_px)
        return {self.name: self.loss(*pairs, avg_factor=matched.avg_factor)}


class _Set(NamedTuple):
    """Predictions that are matched with the ground truth together, in all N layers."""

    prefix: str  # of the losses' names, behind the layer's
    loss_weight: float
    cls_logits: Tensor  # (N, B, Q, K)
    boxes: Tensor  # (N, B, Q, 4)
    targets: list[SetTargets]  # B, those of a group with repeats repeated
    matches: Sequence[Sequence[Matching]]  # B x N
    extras: Extras
    total_pairs: int  # of one layer, in the whole effective batch


class SetCriterion(nn.Module):
    """Matches every group of queries in every decoder layer and sums up the terms on the matched pairs.

    The assigner is None for a model that only predicts.
    """

    def __init__(self, terms: Sequence[nn.Module], assigner: HungarianAssigner | None) -> None:
        super().__init__()
        self.terms, self.assigner = nn.ModuleList(terms), assigner
        # of the last batch, for the log: mean IoU of matched pairs, share of queries that an object is matched with
        self.measures: dict[str, Tensor] = {}

    def forward(self, preds: SetPredictions, samples: Samples) -> dict[str, Tensor]:
        """Losses of the last layer (`loss_*`), of the others (`d{i}.loss_*`) and of the proposals (`enc_loss_*`).

        Names of a group's losses begin with the group's name: `dn_loss_cls`, `d0.dn_loss_cls`. Matching and terms are
        computed in float32, whatever autocast says.

        Raises:
            ValueError: There is no assigner, because the head was built without `train_cfg`.
        """
        if self.assigner is None:
            raise ValueError('this head was built without train_cfg.assigner: it can predict but not train')
        with torch.autocast(preds.cls_logits.device.type, enabled=False):
            shapes = [s.img_shape[1::-1] * 2 for s in samples]
            sizes = torch.tensor(shapes, device=preds.cls_logits.device)  # (B, 4), w h w h in pixels
            targets = make_targets(samples, sizes)
            logits, boxes = preds.cls_logits.float(), preds.boxes_cxcywh_norm.float()
            batch, sets = ACTIVE.get(), []
            if batch is None:  # outside a training loop
                alone = EffectiveBatch([len(target.labels) for target in targets])
                batch = gather_batch([samples]) if is_distributed() else alone
            for group in preds.groups:
                extras = {
                    name: _in_float32(value[:, :, group.queries]) for name, value in preds.extras.items()
                }
                part = logits[:, :, group.queries], boxes[:, :, group.queries]
                sets.append(self._match(group, *part, targets, extras, batch))
            if preds.proposals is not None:
                part = (
                    preds.proposals.cls_logits[None].float(),
                    preds.proposals.boxes_cxcywh_norm[None].float(),
                )
                if not preds.proposals.by_class:
                    targets = [t._replace(labels=torch.zeros_like(t.labels)) for t in targets]
                sets.append(self._match(QueryGroup(slice(None), 'enc_'), *part, targets, {}, batch))
            return self._losses(sets, sizes, batch)

    def _match(
        self,
        group: QueryGroup,
        cls_logits: Tensor,
        boxes: Tensor,
        targets: list[SetTargets],
        extras: Extras,
        batch: EffectiveBatch,
    ) -> _Set:
        if group.matches is not None:
            matches = [[match] * len(cls_logits) for match in group.matches]
        else:
            if (k := group.repeats) > 1:
                targets = [SetTargets(t.labels.repeat(k), t.boxes_cxcywh_norm.repeat(k, 1)) for t in targets]
            assert self.assigner is not None
            matches = [self.assigner.assign(cls_logits[:, b], boxes[:, b], t) for b, t in enumerate(targets)]
        total = _total_pairs(group, cls_logits.shape[2], batch)
        return _Set(group.name, group.loss_weight, cls_logits, boxes, targets, matches, extras, total)

    def _losses(self, sets: list[_Set], sizes: Tensor, batch: EffectiveBatch) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = {}
        for one in sets:
            last = len(one.cls_logits) - 1
            for n in range(last + 1):
                matched = _matched(one, n, sizes, batch)
                prefix = one.prefix if n == last else f'd{n}.{one.prefix}'
                for term in self.terms:
                    losses |= {prefix + name: v * one.loss_weight for name, v in term(matched).items()}
                if one is sets[0] and n == last:
                    iou = box_iou(matched.pred_boxes_xyxy_px.detach(), matched.true_boxes_xyxy_px).diagonal()
                    used = iou.new_zeros(matched.labels.shape[1]).index_fill(0, matched.query_index, 1.0)
                    self.measures = (
                        {'matched_iou': iou.mean(), 'queries_used': used.mean()} if len(iou) else {}
                    )
        return losses


def _in_float32(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _total_pairs(group: QueryGroup, num_queries: int, batch: EffectiveBatch) -> int:
    """Pairs of a group in each layer, in the whole effective batch: one an object, as far as the queries go."""
    if group.matches is not None and group.per_object is None:
        return batch.total(f'{group.name}pairs', sum(len(match.query_index) for match in group.matches))
    times = group.repeats if group.per_object is None else group.per_object
    return sum(min(times * number, num_queries) for number in batch.boxes_per_image)


def _matched(one: _Set, layer: int, sizes: Tensor, batch: EffectiveBatch) -> Matched:
    """The pairs of one layer of a set; `sizes` (B, 4) are w h w h of the images in pixels."""
    matches = [per_layer[layer] for per_layer in one.matches]
    image = torch.cat([torch.full_like(match.query_index, b) for b, match in enumerate(matches)])  # (P,)
    query = torch.cat([match.query_index for match in matches])  # (P,)
    pairs = list(zip(one.targets, matches, strict=True))
    labels = torch.full(one.cls_logits.shape[1:3], NO_OBJECT, device=image.device)  # (B, Q)
    labels[image, query] = torch.cat([target.labels[match.target_index] for target, match in pairs])
    pred = one.boxes[layer][image, query]
    true = torch.cat([target.boxes_cxcywh_norm[match.target_index] for target, match in pairs])
    pred_px, true_px = (box_convert(boxes * sizes[image], 'cxcywh', 'xyxy') for boxes in (pred, true))
    extras = {name: value[layer] for name, value in one.extras.items()}
    boxes = (pred, true, pred_px, true_px)
    parts = batch.processes * batch.accumulated
    num_queries = len(batch.boxes_per_image) * labels.shape[1]
    counts = one.total_pairs, num_queries, parts, max(one.total_pairs, 1.0) / parts
    return Matched(one.cls_logits[layer], labels, image, query, *boxes, *counts, extras)


def make_targets(samples: Samples, sizes: Tensor) -> list[SetTargets]:
    """The samples' boxes as cx cy w h, relative to each unpadded image; `sizes` (B, 4) are w h w h in pixels."""
    targets = []
    for sample, size in zip(samples, sizes, strict=True):
        boxes = box_convert(sample.gt_instances.bboxes.to(sizes.device), 'xyxy', 'cxcywh')  # (G, 4)
        targets.append(SetTargets(sample.gt_instances.labels.to(sizes.device), boxes / size))
    return targets


class SetHead(BaseModule):
    """Base class of heads that predict sets: what their configs share, training and selection.

    Args:
        num_classes: K.
        sync_cls_avg_factor: Accepted for MMDetection's configs; the losses are always divided by counts of the whole
            effective batch (see `EffectiveBatch`).
        loss_cls, loss_bbox, loss_iou: Configs of the losses; by default the paper's.
        loss_terms: Configs of all loss terms, in place of these three; see `LossTerm`.
        train_cfg: `dict(assigner=...)`; without it the head only predicts.
        test_cfg: `dict(max_per_img=100)`.

    Raises:
        ConfigError: See `build_criterion`.
    """

    LOSSES: ClassVar[dict[str, dict]] = {
        'loss_cls': {'type': 'FocalLoss', 'loss_weight': 2.0},
        'loss_bbox': {'type': 'L1Loss', 'loss_weight': 5.0},
        'loss_iou': {'type': 'GIoULoss', 'loss_weight': 2.0},
    }
    EXTRAS: ClassVar[tuple[str, ...]] = ()  # names of `SetPredictions.extras` that the head predicts

    def __init__(
        self,
        num_classes: int,
        sync_cls_avg_factor: bool = True,
        loss_cls: dict | None = None,
        loss_bbox: dict | None = None,
        loss_iou: dict | None = None,
        loss_terms: Sequence[dict] | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        del sync_cls_avg_factor
        losses = {'loss_cls': loss_cls, 'loss_bbox': loss_bbox, 'loss_iou': loss_iou}
        self.criterion = build_criterion(losses, self.LOSSES, loss_terms, train_cfg, self.EXTRAS)
        self.use_sigmoid = all(getattr(term, 'use_sigmoid', True) for term in self.criterion.terms)
        self.max_per_img = (test_cfg or {}).get('max_per_img', 100)
        self.num_classes = num_classes

    def loss(self, preds: SetPredictions, samples: Samples) -> dict[str, Tensor]:
        """See `SetCriterion.forward`."""
        return self.criterion(preds, samples)

    def predict(self, preds: SetPredictions, samples: Samples) -> Samples:
        """Set each sample's `pred_instances` from the last layer's set."""
        return set_pred_instances(preds, samples, self.max_per_img, self.use_sigmoid)

    def detect(self, preds: SetPredictions, batch: ImageBatch) -> Detections:
        """The best detections of the last layer's set; see `BaseDetector.detect`."""
        return select_detections(preds, batch.size_tensor, self.max_per_img, self.use_sigmoid)[0]


def build_criterion(
    losses: Mapping[str, dict | None],
    defaults: Mapping[str, dict],
    loss_terms: Sequence[dict] | None,
    train_cfg: Mapping[str, Any] | None,
    extras: Sequence[str] = (),
) -> SetCriterion:
    """The set loss of a head's config.

    Args:
        losses: `loss_cls`, `loss_bbox`, `loss_iou` by name, as MMDetection's configs give them. `loss_cls` may also be
            a whole term such as `VarifocalTerm` or `AlignTerm`.
        defaults: Those taken for None.
        loss_terms: Configs of all the terms, in place of these three.
        train_cfg: `dict(assigner=...)`, or None for a head that only predicts.
        extras: What the head predicts beside classes and boxes, by name.

    Raises:
        ConfigError: `loss_terms` beside one of the three, none of the terms classifies, or a term needs what the
            head does not predict.
    """
    terms: list[Any]
    if loss_terms is None:
        by_class, l1, iou = (losses[name] or defaults[name] for name in ('loss_cls', 'loss_bbox', 'loss_iou'))
        is_term = hasattr(MODELS.get(by_class['type']), 'needs')
        terms = [
            MODELS.build(by_class) if is_term else ClassTerm(by_class),
            BoxTerm(l1),
            BoxTerm(iou, 'loss_iou', in_pixels=True),
        ]
    else:
        if beside := [name for name, loss in losses.items() if loss is not None]:
            raise ConfigError(
                f'loss_terms stands beside {", ".join(beside)}: set {beside[0]}=None or move it there.'
            )
        terms = [MODELS.build(term) for term in loss_terms]
    for term in terms:
        if absent := [name for name in getattr(term, 'needs', ()) if name not in extras]:
            raise ConfigError(
                f'the loss term {type(term).__name__} needs {absent[0]!r}, which this head does not predict '
                f'(it predicts {", ".join(("classes", "boxes", *extras))}).'
            )
    if not any(hasattr(term, 'use_sigmoid') for term in terms):
        raise ConfigError('loss_terms has no classification term: add one such as ClassTerm.')
    return SetCriterion(terms, TASK_UTILS.build(train_cfg['assigner']) if train_cfg else None)
