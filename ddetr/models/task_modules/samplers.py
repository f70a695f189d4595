"""Which of the assigned candidates the losses are computed on."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ddetr.registry import TASK_UTILS
from ddetr.structures import Sampled

from .max_iou_assigner import BACKGROUND

Hardness = Callable[[Tensor], Tensor]  # (n,) indices of candidates -> (n,) losses


class Quota(NamedTuple):
    """How many candidates of one image are sampled."""

    num: int  # in all
    pos_fraction: float  # at most this part of `num` holds an object; background fills the rest
    neg_pos_ub: float  # at most this many background candidates for one object; no limit if negative


def fill_quota(gt_index: Tensor, quota: Quota, pick: Callable[[Tensor, int], Tensor]) -> Sampled:
    """Fill `quota` from the assigner's result (N,) with the candidates that `pick(indices, count)` chooses."""
    positive = (gt_index >= 0).nonzero().flatten()
    negative = (gt_index == BACKGROUND).nonzero().flatten()
    positive = pick(positive, min(len(positive), int(quota.num * quota.pos_fraction)))
    num_neg = min(len(negative), quota.num - len(positive))
    if quota.neg_pos_ub >= 0:
        num_neg = min(num_neg, int(quota.neg_pos_ub * max(len(positive), 1)))
    negative = pick(negative, num_neg)
    return Sampled(positive, negative, avg_factor=len(positive) + len(negative))


@TASK_UTILS.register_module()
class RandomSampler:
    """Samples at random (Ren et al., 2015, section 3.1.3).

    Args:
        num, pos_fraction, neg_pos_ub: see `Quota`.
        add_gt_as_proposals: the second stage also gets the ground-truth boxes as candidates.
    """

    def __init__(
        self, num: int, pos_fraction: float, neg_pos_ub: float = -1, add_gt_as_proposals: bool = True
    ) -> None:
        self.quota = Quota(num, pos_fraction, neg_pos_ub)
        self.add_gt_as_proposals = add_gt_as_proposals

    def sample(self, gt_index: Tensor, hardness: Hardness | None = None) -> Sampled:
        """(N,) result of the assigner -> the sampled candidates; `hardness` is not asked."""
        return fill_quota(
            gt_index, self.quota, lambda index, n: index[torch.randperm(len(index), device=index.device)[:n]]
        )


@TASK_UTILS.register_module()
class OHEMSampler:
    """Samples the candidates with the highest classification loss (Shrivastava et al., "OHEM").

    Args:
        num, pos_fraction, neg_pos_ub: see `Quota`.
        add_gt_as_proposals: the second stage also gets the ground-truth boxes as candidates.
    """

    def __init__(
        self, num: int, pos_fraction: float, neg_pos_ub: float = -1, add_gt_as_proposals: bool = True
    ) -> None:
        self.quota = Quota(num, pos_fraction, neg_pos_ub)
        self.add_gt_as_proposals = add_gt_as_proposals

    def sample(self, gt_index: Tensor, hardness: Hardness | None = None) -> Sampled:
        """(N,) result of the assigner -> the candidates that `hardness` gives the highest losses.

        Raises:
            ValueError: without `hardness`, which only the second stage has.
        """
        if hardness is None:
            raise ValueError(
                'OHEMSampler needs losses to rank by: use it in train_cfg.rcnn, not in train_cfg.rpn'
            )
        return fill_quota(
            gt_index, self.quota, lambda index, n: index[hardness(index).topk(n).indices] if n else index[:0]
        )


@TASK_UTILS.register_module()
class PseudoSampler:
    """Takes every candidate that was assigned; the losses are divided by the number of objects among them."""

    add_gt_as_proposals = False

    def sample(self, gt_index: Tensor, hardness: Hardness | None = None) -> Sampled:
        """(N,) result of the assigner -> all of it; `hardness` is not asked."""
        positive = (gt_index >= 0).nonzero().flatten()
        return Sampled(positive, (gt_index == BACKGROUND).nonzero().flatten(), avg_factor=len(positive))
