"""Prediction head of DETR."""

from typing import Any

import torch.nn.functional as F
from mmengine.model import bias_init_with_prob
from torch import Tensor, nn

from ddetr.models.layers import FFN
from ddetr.models.set_prediction import SetHead
from ddetr.registry import MODELS
from ddetr.structures import SetPredictions

from .reset import CLASS_PRIOR, reset_linears


@MODELS.register_module()
class DETRHead(SetHead):
    """One class branch and one box branch, shared by all decoder layers (DETR, section 3.2).

    With a softmax loss, the last class is "no object". With a sigmoid loss, as in DETR-DC5+ (Deformable DETR,
    section 5), queries without an object have low scores for all classes.

    Args:
        num_classes: Number of classes, K.
        embed_dims: Embedding dimension, C.
        num_reg_fcs: Number of hidden layers in the box branch, at least 2.
        **options: See `SetHead`.
    """

    LOSSES = {**SetHead.LOSSES, 'loss_cls': {'type': 'CrossEntropyLoss', 'bg_cls_weight': 0.1}}

    def __init__(self, num_classes: int, embed_dims: int = 256, num_reg_fcs: int = 2, **options: Any) -> None:
        super().__init__(num_classes, **options)
        self.fc_cls = nn.Linear(embed_dims, num_classes if self.use_sigmoid else num_classes + 1)
        self.reg_ffn = FFN(embed_dims, embed_dims, num_reg_fcs, add_identity=False)
        self.fc_reg = nn.Linear(embed_dims, 4)
        if self.use_sigmoid:
            nn.init.constant_(self.fc_cls.bias, bias_init_with_prob(CLASS_PRIOR))

    def reset_classes(self, num_classes: int) -> list[str]:
        """Reinitialise the class branch for `num_classes` classes. Return the names of the new tensors."""
        self.num_classes = num_classes
        rows = num_classes if self.use_sigmoid else num_classes + 1
        return reset_linears(self, 'fc_cls', rows, CLASS_PRIOR if self.use_sigmoid else None)

    def forward(self, hidden: Tensor) -> SetPredictions:
        """Predict classes and boxes from the decoder states (N, B, Q, C) of all layers."""
        boxes = self.fc_reg(F.relu(self.reg_ffn(hidden))).float().sigmoid()  # (N, B, Q, 4)
        return SetPredictions(self.fc_cls(hidden), boxes)
