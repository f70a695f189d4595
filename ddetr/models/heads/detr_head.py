"""DETR's prediction branches."""

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
    """One class and one box branch for the states of all decoder layers (DETR, section 3.2).

    With a softmax loss the classes have "no object" as their last; with a sigmoid loss, as in DETR-DC5+
    (Deformable DETR, section 5), a query that detects nothing scores low for every class.

    Args:
        num_classes: K.
        embed_dims: C.
        num_reg_fcs: Hidden layers of the box branch, at least 2.
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
        """A new class branch for `num_classes` classes; the names of its tensors."""
        self.num_classes = num_classes
        rows = num_classes if self.use_sigmoid else num_classes + 1
        return reset_linears(self, 'fc_cls', rows, CLASS_PRIOR if self.use_sigmoid else None)

    def forward(self, hidden: Tensor) -> SetPredictions:
        """The decoder's states (N, B, Q, C) -> every layer's set."""
        boxes = self.fc_reg(F.relu(self.reg_ffn(hidden))).float().sigmoid()  # (N, B, Q, 4)
        return SetPredictions(self.fc_cls(hidden), boxes)
