"""Losses of predicted sets: ground truth, matching, and the terms that are computed on the matched pairs."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from mmengine.dist import all_reduce
from torch import Tensor, nn
from torchvision.ops import box_convert

from ddetr.models.task_modules import HungarianAssigner
from ddetr.registry import MODELS, TASK_UTILS
from ddetr.structures import (
    NO_OBJECT,
    Matched,
    Matching,
    QueryGroup,
    Samples,
    SetPredictions,
    SetTargets,
)
from ddetr.utils.errors import ConfigError


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
    """Classification loss over all queries of a group.

    It is divided by the number of pairs with sigmoids (Zhu et al., 2021, appendix A.3), and with softmax by the summed
    weights of all queries, where those without an object have `bg_cls_weight` (Carion et al., 2020, section 3.1).

    Args:
        loss: Config of a registered loss of logits and labels, such as `FocalLoss`.
        name: Key of the result.
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
        total = matched.num_pairs
        if not self.use_sigmoid:
            bg_weight = getattr(self.loss, 'bg_cls_weight', None)
            total = total + (matched.num_queries - total) * (1.0 if bg_weight is None else bg_weight)
        loss = self.loss(matched.cls_logits.flatten(0, 1), labels.flatten(), avg_factor=total.clamp(min=1))
        return {self.name: loss}


@MODELS.register_module()
class VarifocalTerm(nn.Module):
    """Classification by sigmoids that learn the IoU of a matched query's box (Zhang et al., "VarifocalNet", 2021).

    Args:
        alpha, gamma: Weight of queries without an object: alpha * p^gamma.
        loss_weight: Factor of the result.
        name: Key of the result.
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
        return {self.name: self.loss_weight * loss / matched.num_pairs.clamp(min=1)}


@MODELS.register_module()
class BoxTerm(nn.Module):
    """Loss of the matched pairs' boxes, divided by the number of pairs.

    Args:
        loss: Config of a registered loss of boxes, such as `L1Loss` or `GIoULoss`.
        name: Key of the result.
        in_pixels: Compare x1 y1 x2 y2 in pixels of the unpadded image, as the IoU losses want it: their epsilon
            would distort the IoU of small boxes in normalised units. Otherwise cx cy w h in 0..1.
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
        return {self.name: self.loss(*pairs, avg_factor=matched.num_pairs.clamp(min=1))}


class _Set(NamedTuple):
    """Predictions that are matched with the ground truth together, in all N layers."""

    prefix: str  # of the losses' names, behind the layer's
    loss_weight: float
    cls_logits: Tensor  # (N, B, Q, K)
    boxes: Tensor  # (N, B, Q, 4)
    targets: list[SetTargets]  # B, those of a group with repeats repeated
    matches: Sequence[Sequence[Matching]]  # B x N
    extras: Mapping[str, Tensor]  # (N, B, Q, ...) each


class SetCriterion(nn.Module):
    """Matches every group of queries in every decoder layer and sums up the terms on the matched pairs.

    Args:
        terms: The loss terms.
        assigner: Matches queries and objects; None for a model that only predicts.
    """

    def __init__(self, terms: Sequence[nn.Module], assigner: HungarianAssigner | None) -> None:
        super().__init__()
        self.terms = nn.ModuleList(terms)
        self.assigner = assigner

    def forward(self, preds: SetPredictions, samples: Samples) -> dict[str, Tensor]:
        """Losses of the last layer (`loss_*`), of the others (`d{i}.loss_*`) and of the proposals (`enc_loss_*`).

        Names of a group's losses begin with the group's name: `dn_loss_cls`, `d0.dn_loss_cls`.

        Raises:
            ValueError: There is no assigner, because the head was built without `train_cfg`.
        """
        if self.assigner is None:
            raise ValueError('this head was built without train_cfg.assigner: it can predict but not train')
        shapes = [s.img_shape[1::-1] * 2 for s in samples]
        sizes = torch.tensor(shapes, device=preds.cls_logits.device)  # (B, 4), w h w h in pixels
        targets = make_targets(samples, sizes)
        logits, boxes = preds.cls_logits.float(), preds.boxes_cxcywh_norm.float()
        sets = []
        for group in preds.groups:
            extras = {name: value[:, :, group.queries] for name, value in preds.extras.items()}
            part = logits[:, :, group.queries], boxes[:, :, group.queries]
            sets.append(self._match(group, *part, targets, extras))
        if preds.proposals is not None:
            cls_logits, encoder_boxes, by_class = preds.proposals
            if not by_class:
                targets = [t._replace(labels=torch.zeros_like(t.labels)) for t in targets]
            group = QueryGroup(slice(None), 'enc_')
            sets.append(
                self._match(group, cls_logits[None].float(), encoder_boxes[None].float(), targets, {})
            )
        return self._losses(sets, sizes)

    def _match(
        self,
        group: QueryGroup,
        cls_logits: Tensor,
        boxes: Tensor,
        targets: list[SetTargets],
        extras: Mapping[str, Tensor],
    ) -> _Set:
        if group.matches is not None:
            matches = [[match] * len(cls_logits) for match in group.matches]
            return _Set(group.name, group.loss_weight, cls_logits, boxes, targets, matches, extras)
        k = group.repeats
        if k > 1:
            targets = [SetTargets(t.labels.repeat(k), t.boxes_cxcywh_norm.repeat(k, 1)) for t in targets]
        assert self.assigner is not None
        matches = [self.assigner.assign(cls_logits[:, b], boxes[:, b], t) for b, t in enumerate(targets)]
        return _Set(group.name, group.loss_weight, cls_logits, boxes, targets, matches, extras)

    def _losses(self, sets: list[_Set], sizes: Tensor) -> dict[str, Tensor]:
        # every layer matches as many pairs, so the first one's count serves all; averaged over the processes, so
        # that an object weighs the same on each of them
        counts = torch.tensor(
            [[sum(len(m[0].query_index) for m in s.matches), s.boxes[0, ..., 0].numel()] for s in sets],
            dtype=torch.float32,
            device=sets[0].cls_logits.device,
        )  # (sets, 2)
        all_reduce(counts, op='mean')
        losses: dict[str, Tensor] = {}
        for one, count in zip(sets, counts, strict=True):
            last = len(one.cls_logits) - 1
            for n in range(last + 1):
                matched = _matched(one, n, count, sizes)
                prefix = one.prefix if n == last else f'd{n}.{one.prefix}'
                for term in self.terms:
                    losses |= {prefix + name: v * one.loss_weight for name, v in term(matched).items()}
        return losses


def _matched(one: _Set, layer: int, count: Tensor, sizes: Tensor) -> Matched:
    """The pairs of one layer of a set; `sizes` (B, 4) are w h w h of the images in pixels."""
    matches = [per_layer[layer] for per_layer in one.matches]
    image = torch.cat([torch.full_like(match.query_index, b) for b, match in enumerate(matches)])  # (P,)
    query = torch.cat([match.query_index for match in matches])  # (P,)
    pairs = list(zip(one.targets, matches, strict=True))
    labels = torch.full(one.cls_logits.shape[1:3], NO_OBJECT, device=image.device)  # (B, Q)
    labels[image, query] = torch.cat([target.labels[match.target_index] for target, match in pairs])
    pred = one.boxes[layer][image, query]
    true = torch.cat([target.boxes_cxcywh_norm[match.target_index] for target, match in pairs])
    return Matched(
        one.cls_logits[layer],
        labels,
        image,
        query,
        pred,
        true,
        box_convert(pred * sizes[image], 'cxcywh', 'xyxy'),
        box_convert(true * sizes[image], 'cxcywh', 'xyxy'),
        num_pairs=count[0],
        num_queries=count[1],
        extras={name: value[layer] for name, value in one.extras.items()},
    )


def make_targets(samples: Samples, sizes: Tensor) -> list[SetTargets]:
    """The samples' boxes as cx cy w h, relative to each unpadded image; `sizes` (B, 4) are w h w h in pixels."""
    targets = []
    for sample, size in zip(samples, sizes, strict=True):
        boxes = box_convert(sample.gt_instances.bboxes.to(sizes.device), 'xyxy', 'cxcywh')  # (G, 4)
        targets.append(SetTargets(sample.gt_instances.labels.to(sizes.device), boxes / size))
    return targets


def build_criterion(
    losses: Mapping[str, dict | None],
    defaults: Mapping[str, dict],
    loss_terms: Sequence[dict] | None,
    train_cfg: Mapping[str, Any] | None,
    extras: Sequence[str] = (),
) -> SetCriterion:
    """The set loss of a head's config.

    Args:
        losses: `loss_cls`, `loss_bbox`, `loss_iou` by name, as MMDetection's configs give them.
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
        chosen = {name: losses[name] or default for name, default in defaults.items()}
        terms = [
            ClassTerm(chosen['loss_cls']),
            BoxTerm(chosen['loss_bbox']),
            BoxTerm(chosen['loss_iou'], 'loss_iou', in_pixels=True),
        ]
    else:
        beside = [name for name, loss in losses.items() if loss is not None]
        if beside:
            raise ConfigError(
                f'loss_terms stands beside {", ".join(beside)}: set {beside[0]}=None or move it there.'
            )
        terms = [MODELS.build(term) for term in loss_terms]
    for term in terms:
        absent = [name for name in getattr(term, 'needs', ()) if name not in extras]
        if absent:
            raise ConfigError(
                f'the loss term {type(term).__name__} needs {absent[0]!r}, which this head does not predict '
                f'(it predicts {", ".join(("classes", "boxes", *extras))}).'
            )
    if not any(hasattr(term, 'use_sigmoid') for term in terms):
        raise ConfigError('loss_terms has no classification term: add one such as ClassTerm.')
    return SetCriterion(terms, TASK_UTILS.build(train_cfg['assigner']) if train_cfg else None)
