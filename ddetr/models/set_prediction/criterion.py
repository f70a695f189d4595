"""Set prediction losses: targets, matching, and the loss terms computed on matched pairs."""

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
    """Interface of a term of the set loss, registered in `MODELS` and listed in a head's `loss_terms`.

    Attributes:
        needs: Names of `SetPredictions.extras` that the term reads. A head that does not predict them raises an error.
        use_sigmoid: Whether the head classifies with sigmoid. Only classification terms have this attribute.
    """

    needs: tuple[str, ...]

    def __call__(self, matched: Matched) -> dict[str, Tensor]:
        """Compute scalar losses of one group in one decoder layer. Those with `loss` in their name are summed."""


@MODELS.register_module()
class ClassTerm(nn.Module):
    """Classification loss over all queries of a group.

    A sigmoid loss is normalised by the number of pairs (Zhu et al., 2021, appendix A.3). A softmax loss is normalised
    by the summed weights of all queries, where unmatched queries weigh `bg_cls_weight` (Carion et al., 2020,
    section 3.1).

    Args:
        loss: Config of a registered loss of logits and labels, such as `FocalLoss`.
        name: Key of the loss.
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
    """Varifocal loss: the target score of a matched query is its box IoU (Zhang et al., "VarifocalNet", 2021).

    Unmatched queries have the weight alpha * p^gamma.

    Args:
        alpha, gamma: Weighting of unmatched queries.
        loss_weight: Factor applied to the loss.
        name: Key of the loss.
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
    """IoU-aware classification loss (Cai et al., 2023, arXiv:2304.07527, section 3.2).

    The target of a matched query is p^alpha * IoU^(1 - alpha) with its predicted probability p, without gradient, and
    has the weight 1. Unmatched queries have the weight p^gamma.

    Args:
        alpha: Exponent of the probability in the target.
        gamma: Exponent of the weight of unmatched queries.
        loss_weight: Factor applied to the loss.
        name: Key of the loss.
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
        # targets are at least 0.01, as in the original code, so that poor early boxes still train the class
        target[pairs] = (prob[pairs] ** self.alpha * matched.iou() ** (1 - self.alpha)).clamp(min=0.01)
        weight[pairs] = 1.0
        loss = F.binary_cross_entropy_with_logits(logits, target, weight, reduction='sum')
        return {self.name: self.loss_weight * loss / matched.avg_factor}


@MODELS.register_module()
class BoxTerm(nn.Module):
    """Box loss of the matched pairs, normalised by their number.

    Args:
        loss: Config of a registered box loss, such as `L1Loss`.
        name: Key of the loss.
        in_pixels: Whether to compare x1 y1 x2 y2 in pixels of the unpadded image instead of cx cy w h in 0..1. IoU
            losses need pixels, because their epsilon would distort the IoU of small boxes in normalised units.
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
    """Predictions of all N layers that are matched with the ground truth as one set."""

    prefix: str  # prefix of the loss names, after the layer prefix
    loss_weight: float
    cls_logits: Tensor  # (N, B, Q, K)
    boxes: Tensor  # (N, B, Q, 4)
    targets: list[SetTargets]  # B, repeated for groups with repeats
    matches: Sequence[Sequence[Matching]]  # B x N
    extras: Extras
    total_pairs: int  # pairs per layer in the effective batch


class SetCriterion(nn.Module):
    """Matches every query group in every decoder layer and computes the loss terms on the matched pairs.

    Args:
        terms: Loss terms.
        assigner: Matches queries with ground truth; None for an inference-only model.

    Attributes:
        measures: For the log: mean IoU of the matched pairs and fraction of matched queries in the last batch.
    """

    def __init__(self, terms: Sequence[nn.Module], assigner: HungarianAssigner | None) -> None:
        super().__init__()
        self.terms, self.assigner = nn.ModuleList(terms), assigner
        self.measures: dict[str, Tensor] = {}

    def forward(self, preds: SetPredictions, samples: Samples) -> dict[str, Tensor]:
        """Losses of the last layer (`loss_*`), the other layers (`d{i}.loss_*`) and the proposals (`enc_loss_*`).

        Loss names of a group start with the group's name: `dn_loss_cls`, `d0.dn_loss_cls`. Matching and losses are
        always computed in float32, also under autocast.

        Raises:
            ValueError: There is no assigner because the head was built without `train_cfg`.
        """
        if self.assigner is None:
            raise ValueError('this head was built without train_cfg.assigner and supports only inference')
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
        if group.matches is not None and group.per_object is None:
            total = batch.total(f'{group.name}pairs', sum(len(match.query_index) for match in group.matches))
        else:  # one pair per object, limited by the queries
            times = group.repeats if group.per_object is None else group.per_object
            total = sum(min(times * number, cls_logits.shape[2]) for number in batch.boxes_per_image)
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


def _matched(one: _Set, layer: int, sizes: Tensor, batch: EffectiveBatch) -> Matched:
    """Collect the pairs of one layer; `sizes` (B, 4) are the image sizes w h w h in pixels."""
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
    """Convert ground truth to cx cy w h relative to each unpadded image; `sizes` (B, 4) are w h w h in pixels."""
    targets = []
    for sample, size in zip(samples, sizes, strict=True):
        boxes = box_convert(sample.gt_instances.bboxes.to(sizes.device), 'xyxy', 'cxcywh')  # (G, 4)
        targets.append(SetTargets(sample.gt_instances.labels.to(sizes.device), boxes / size))
    return targets


class SetHead(BaseModule):
    """Base class of set prediction heads: loss configuration, training and post-processing.

    Args:
        num_classes: Number of classes, K.
        sync_cls_avg_factor: Accepted for compatibility with MMDetection configs. Losses are always normalised over
            the effective batch (see `EffectiveBatch`).
        loss_cls, loss_bbox, loss_iou: Configs of the losses; the defaults are those of the paper.
        loss_terms: Configs of all loss terms, instead of the three above; see `LossTerm`.
        train_cfg: `dict(assigner=...)`; None for an inference-only head.
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
        """Set `pred_instances` of each sample from the predictions of the last layer."""
        return set_pred_instances(preds, samples, self.max_per_img, self.use_sigmoid)

    def detect(self, preds: SetPredictions, batch: ImageBatch) -> Detections:
        """Top detections of the last layer; see `BaseDetector.detect`."""
        return select_detections(preds, batch.size_tensor, self.max_per_img, self.use_sigmoid)[0]


def build_criterion(
    losses: Mapping[str, dict | None],
    defaults: Mapping[str, dict],
    loss_terms: Sequence[dict] | None,
    train_cfg: Mapping[str, Any] | None,
    extras: Sequence[str] = (),
) -> SetCriterion:
    """Build the set loss from a head's config.

    Args:
        losses: Configs of `loss_cls`, `loss_bbox` and `loss_iou` by name, as in MMDetection. `loss_cls` may also be a
            loss term such as `VarifocalTerm` or `AlignTerm`.
        defaults: Configs used where `losses` has None.
        loss_terms: Configs of all loss terms, instead of the three above.
        train_cfg: `dict(assigner=...)`, or None for an inference-only head.
        extras: Names of the head's predictions other than classes and boxes.

    Raises:
        ConfigError: `loss_terms` is combined with one of the three losses, has no classification term, or has a term
            that needs predictions the head does not provide.
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
                f'loss_terms cannot be combined with {", ".join(beside)}: set {beside[0]}=None or move it to '
                'loss_terms.'
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
