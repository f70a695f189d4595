"""Softmax and binary cross entropy."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddetr.registry import MODELS

from .reduction import check_reduction, weighted_reduce


@MODELS.register_module()
class CrossEntropyLoss(nn.Module):
    """Cross entropy over integer labels.

    Args:
        use_sigmoid: binary cross entropy over one-hot labels, the label K (number of logits) being background;
            otherwise softmax, where every label is a class of its own.
        class_weight: one factor per class, softmax only. The DETR heads build it from `bg_cls_weight`.
        bg_cls_weight: factor of the last class, DETR's "no object"; the head reads it.
        reduction, loss_weight: as everywhere.
    """

    def __init__(
        self,
        use_sigmoid: bool = False,
        class_weight: list[float] | float | None = None,
        bg_cls_weight: float | None = None,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        self.use_sigmoid = use_sigmoid
        self.class_weight = class_weight
        self.bg_cls_weight = bg_cls_weight
        self.loss_weight = loss_weight
        self.reduction = check_reduction(reduction)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """`logits` (N, K) or, binary with one logit, (N, 1) or (N,); `labels` (N,) int64; `weight` (N,)."""
        if self.use_sigmoid:
            loss = self._binary(logits.reshape(len(labels), -1), labels)  # (N, K)
        else:
            loss = F.cross_entropy(logits, labels, self._class_weights(logits), reduction='none')  # (N,)
        return self.loss_weight * weighted_reduce(loss, weight, self.reduction, avg_factor)

    @staticmethod
    def _binary(logits: Tensor, labels: Tensor) -> Tensor:
        num_classes = logits.shape[1]
        one_hot = F.one_hot(labels, num_classes + 1)[:, :num_classes].to(logits.dtype)
        return F.binary_cross_entropy_with_logits(logits, one_hot, reduction='none')

    def _class_weights(self, logits: Tensor) -> Tensor | None:
        """(K,) factors: `class_weight` for every class, `bg_cls_weight` for the last one."""
        if self.class_weight is None and self.bg_cls_weight is None:
            return None
        weights = logits.new_ones(logits.shape[1])
        if self.class_weight is not None:
            weights = weights * torch.as_tensor(self.class_weight, dtype=logits.dtype, device=logits.device)
        if self.bg_cls_weight is not None:
            weights[-1] = self.bg_cls_weight
        return weights
