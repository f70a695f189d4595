"""DETR's prediction branches."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmengine.model import BaseModule, bias_init_with_prob
from torch import Tensor, nn

from ddetr.models.layers import FFN
from ddetr.models.set_prediction import build_criterion, set_pred_instances
from ddetr.registry import MODELS
from ddetr.structures import Samples, SetPredictions

from .reset import CLASS_PRIOR, reset_linears


@MODELS.register_module()
class DETRHead(BaseModule):
    """One class and one box branch for the states of all decoder layers (DETR, section 3.2).

    With a softmax loss the classes have "no object" as their last; with a sigmoid loss, as in DETR-DC5+
    (Deformable DETR, section 5), a query that detects nothing scores low for every class.

    Args:
        num_classes: K.
        embed_dims: C.
        num_reg_fcs: Hidden layers of the box branch, at least 2.
        sync_cls_avg_factor: Accepted for MMDetection's configs; what the losses are divided by is always averaged
            over the processes, so that several of them train as one with the whole batch would.
        loss_cls, loss_bbox, loss_iou: Configs of the losses; by default the paper's.
        loss_terms: Configs of all loss terms, in place of these three; see `LossTerm`.
        train_cfg: `dict(assigner=...)`; without it the head only predicts.
        test_cfg: `dict(max_per_img=100)`.

    Raises:
        ConfigError: See `build_criterion`.
    """

    LOSSES = {
        'loss_cls': {'type': 'CrossEntropyLoss', 'bg_cls_weight': 0.1},
        'loss_bbox': {'type': 'L1Loss', 'loss_weight': 5.0},
        'loss_iou': {'type': 'GIoULoss', 'loss_weight': 2.0},
    }

    def __init__(
        self,
        num_classes: int,
        embed_dims: int = 256,
        num_reg_fcs: int = 2,
        sync_cls_avg_factor: bool = False,
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
        self.criterion = build_criterion(losses, self.LOSSES, loss_terms, train_cfg)
        self.use_sigmoid = all(getattr(term, 'use_sigmoid', True) for term in self.criterion.terms)
        self.max_per_img = (test_cfg or {}).get('max_per_img', 100)
        self.num_classes = num_classes
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

    def loss(self, preds: SetPredictions, samples: Samples) -> dict[str, Tensor]:
        """See `SetCriterion.forward`."""
        return self.criterion(preds, samples)

    def predict(self, preds: SetPredictions, samples: Samples) -> Samples:
        """Set each sample's `pred_instances` from the last layer's set."""
        return set_pred_instances(preds, samples, self.max_per_img, self.use_sigmoid)
