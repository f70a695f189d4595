"""Focal loss (Lin et al., "Focal Loss for Dense Object Detection", section 3)."""

import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from ddetr.registry import MODELS

from .reduction import check_reduction, weighted_reduce


@MODELS.register_module()
class FocalLoss(nn.Module):
    """Sigmoid focal loss over integer labels; the label K (number of classes) means background.

    Raises:
        ValueError: `use_sigmoid=False`, which the paper does not define.
    """

    def __init__(
        self,
        use_sigmoid: bool = True,
        gamma: float = 2.0,
        alpha: float = 0.25,
        reduction: str = 'mean',
        loss_weight: float = 1.0,
    ) -> None:
        super().__init__()
        if not use_sigmoid:
            raise ValueError('FocalLoss is defined on sigmoids: set use_sigmoid=True')
        self.use_sigmoid = True
        self.gamma, self.alpha, self.loss_weight = gamma, alpha, loss_weight
        self.reduction = check_reduction(reduction)

    def forward(
        self,
        logits: Tensor,
        labels: Tensor,
        weight: Tensor | None = None,
        avg_factor: Tensor | float | None = None,
    ) -> Tensor:
        """`logits` (N, K), `labels` (N,) int64 in 0..K, `weight` (N,) -> a scalar, or (N, K) unreduced."""
        num_classes = logits.shape[1]
        one_hot = F.one_hot(labels, num_classes + 1)[:, :num_classes].to(logits.dtype)  # (N, K)
        loss = sigmoid_focal_loss(logits, one_hot, self.alpha, self.gamma)  # (N, K)
        return self.loss_weight * weighted_reduce(loss, weight, self.reduction, avg_factor)
