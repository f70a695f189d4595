"""Sample the assigned candidates that contribute to the losses."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddetr.registry import TASK_UTILS
from ddetr.structures import Sampled

from .max_iou_assigner import BACKGROUND

Hardness = Callable[[Tensor], Tensor]  # (n,) indices of candidates -> (n,) losses


@TASK_UTILS.register_module()
class RandomSampler:
    """Samples candidates at random (Ren et al., 2015, section 3.1.3).

    Args:
        num: Number of samples per image.
        pos_fraction: Maximum fraction of positives; negatives fill the rest.
        neg_pos_ub: Maximum number of negatives per positive; no limit if negative.
        add_gt_as_proposals: Whether to add the ground-truth boxes to the candidates of the second stage.
    """

    def __init__(
        self, num: int, pos_fraction: float, neg_pos_ub: float = -1, add_gt_as_proposals: bool = True
    ) -> None:
        self.num, self.pos_fraction, self.neg_pos_ub = num, pos_fraction, neg_pos_ub
        self.add_gt_as_proposals = add_gt_as_proposals

    def pick(
        self, index: Tensor, count: int, hardness: Hardness | None, generator: torch.Generator | None
    ) -> Tensor:
        """Draw `count` of the candidates `index` (n,) with `generator`, or with the global generator if None."""
        return index[torch.randperm(len(index), device=index.device, generator=generator)[:count]]

    def sample(
        self,
        gt_index: Tensor,
        hardness: Hardness | None = None,
        generator: torch.Generator | None = None,
    ) -> Sampled:
        """Sample candidates, given the result (N,) of the assigner."""
        positive = (gt_index >= 0).nonzero().flatten()
        negative = (gt_index == BACKGROUND).nonzero().flatten()
        positive = self.pick(
            positive, min(len(positive), int(self.num * self.pos_fraction)), hardness, generator
        )
        num_neg = min(len(negative), self.num - len(positive))
        if self.neg_pos_ub >= 0:
            num_neg = min(num_neg, int(self.neg_pos_ub * max(len(positive), 1)))
        negative = self.pick(negative, num_neg, hardness, generator)
        return Sampled(positive, negative, avg_factor=len(positive) + len(negative))


@TASK_UTILS.register_module()
class OHEMSampler(RandomSampler):
    """Samples the candidates with the highest classification loss (Shrivastava et al., "OHEM")."""

    def pick(
        self, index: Tensor, count: int, hardness: Hardness | None, generator: torch.Generator | None
    ) -> Tensor:
        """The `count` candidates with the highest loss. Raise ValueError without `hardness`, as in the first stage."""
        if hardness is None:
            raise ValueError('OHEMSampler ranks by losses: use it in train_cfg.rcnn, not in train_cfg.rpn')
        return index[hardness(index).topk(count).indices] if count else index[:0]


@TASK_UTILS.register_module()
class PseudoSampler:
    """Keeps all assigned candidates. Losses are normalised by the number of positives."""

    add_gt_as_proposals = False

    def sample(
        self,
        gt_index: Tensor,
        hardness: Hardness | None = None,
        generator: torch.Generator | None = None,
    ) -> Sampled:
        """Return all assigned candidates, given the result (N,) of the assigner."""
        positive = (gt_index >= 0).nonzero().flatten()
        return Sampled(positive, (gt_index == BACKGROUND).nonzero().flatten(), avg_factor=len(positive))
