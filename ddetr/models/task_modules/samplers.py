"""Which of the assigned candidates the losses are computed on."""

from collections.abc import Callable

import torch
from torch import Tensor

from ddetr.registry import TASK_UTILS
from ddetr.structures import Sampled

from .max_iou_assigner import BACKGROUND

Hardness = Callable[[Tensor], Tensor]  # (n,) indices of candidates -> (n,) losses


@TASK_UTILS.register_module()
class RandomSampler:
    """Samples at random (Ren et al., 2015, section 3.1.3).

    Args:
        num: candidates of one image in all.
        pos_fraction: at most this part of `num` holds an object; background fills the rest.
        neg_pos_ub: at most this many background candidates for one object; no limit if negative.
        add_gt_as_proposals: the second stage also gets the ground-truth boxes as candidates.
    """

    def __init__(
        self, num: int, pos_fraction: float, neg_pos_ub: float = -1, add_gt_as_proposals: bool = True
    ) -> None:
        self.num, self.pos_fraction, self.neg_pos_ub = num, pos_fraction, neg_pos_ub
        self.add_gt_as_proposals = add_gt_as_proposals

    def pick(
        self, index: Tensor, count: int, hardness: Hardness | None, generator: torch.Generator | None
    ) -> Tensor:
        """`count` of the candidates `index` (n,), drawn by `generator` or else the global one."""
        return index[torch.randperm(len(index), device=index.device, generator=generator)[:count]]

    def sample(
        self,
        gt_index: Tensor,
        hardness: Hardness | None = None,
        generator: torch.Generator | None = None,
    ) -> Sampled:
        """(N,) result of the assigner -> the sampled candidates."""
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
        """The `count` candidates of the highest losses; ValueError without `hardness`, as in the first stage."""
        if hardness is None:
            raise ValueError(
                'OHEMSampler needs losses to rank by: use it in train_cfg.rcnn, not in train_cfg.rpn'
            )
        return index[hardness(index).topk(count).indices] if count else index[:0]


@TASK_UTILS.register_module()
class PseudoSampler:
    """Takes every candidate that was assigned; the losses are divided by the number of objects among them."""

    add_gt_as_proposals = False

    def sample(
        self,
        gt_index: Tensor,
        hardness: Hardness | None = None,
        generator: torch.Generator | None = None,
    ) -> Sampled:
        """(N,) result of the assigner -> all of it; nothing is drawn."""
        positive = (gt_index >= 0).nonzero().flatten()
        return Sampled(positive, (gt_index == BACKGROUND).nonzero().flatten(), avg_factor=len(positive))
