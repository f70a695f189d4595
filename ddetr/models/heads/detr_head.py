"""DETR's prediction branches, losses and selection."""

import torch.nn.functional as F
from mmengine.model import BaseModule, bias_init_with_prob
from torch import Tensor, nn

from ddetr.models.layers import FFN
from ddetr.registry import MODELS, TASK_UTILS
from ddetr.structures import DetDataSample, SetPredictions

from .set_loss import SetLosses, losses_of_all_layers, set_pred_instances


@MODELS.register_module()
class DETRHead(BaseModule):
    """One class and one box branch for the states of all decoder layers (DETR, section 3.2).

    With a softmax loss the classes have "no object" as their last; with a sigmoid loss, as in DETR-DC5+
    (Deformable DETR, section 5), a query that detects nothing scores low for every class.

    Args:
        num_classes: K.
        embed_dims: C.
        num_reg_fcs: hidden layers of the box branch, at least 2.
        sync_cls_avg_factor: accepted for MMDetection's configs; what the losses are divided by is always averaged
            over the processes, so that several of them train as one with the whole batch would.
        loss_cls, loss_bbox, loss_iou: configs of the losses; by default the paper's.
        train_cfg: `dict(assigner=...)`; without it the head only predicts.
        test_cfg: `dict(max_per_img=100)`.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int = 256,
        num_reg_fcs: int = 2,
        sync_cls_avg_factor: bool = False,
        loss_cls: dict | None = None,
        loss_bbox: dict | None = None,
        loss_iou: dict | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        del sync_cls_avg_factor
        self.losses = SetLosses(
            MODELS.build(loss_cls or {'type': 'CrossEntropyLoss', 'bg_cls_weight': 0.1}),
            MODELS.build(loss_bbox or {'type': 'L1Loss', 'loss_weight': 5.0}),
            MODELS.build(loss_iou or {'type': 'GIoULoss', 'loss_weight': 2.0}),
        )
        self.use_sigmoid = bool(self.losses.loss_cls.use_sigmoid)
        self.assigner = TASK_UTILS.build(train_cfg['assigner']) if train_cfg else None
        self.max_per_img = (test_cfg or {}).get('max_per_img', 100)
        self.num_classes = num_classes
        self.fc_cls = nn.Linear(embed_dims, num_classes if self.use_sigmoid else num_classes + 1)
        self.reg_ffn = FFN(embed_dims, embed_dims, num_reg_fcs, add_identity=False)
        self.fc_reg = nn.Linear(embed_dims, 4)
        if self.use_sigmoid:
            nn.init.constant_(self.fc_cls.bias, bias_init_with_prob(0.01))  # focal loss, section 3.3

    def forward(self, hidden: Tensor) -> SetPredictions:
        """The decoder's states (N, B, Q, C) -> every layer's set."""
        boxes = self.fc_reg(F.relu(self.reg_ffn(hidden))).float().sigmoid()  # (N, B, Q, 4)
        return SetPredictions(self.fc_cls(hidden), boxes)

    def loss(self, preds: SetPredictions, samples: list[DetDataSample]) -> dict[str, Tensor]:
        """Losses of the last layer (`loss_*`) and of the others (`d{i}.loss_*`).

        Raises:
            ValueError: the head was built without `train_cfg`.
        """
        return losses_of_all_layers(preds, samples, self.assigner, self.losses)

    def predict(self, preds: SetPredictions, samples: list[DetDataSample]) -> list[DetDataSample]:
        """Set each sample's `pred_instances` from the last layer's set."""
        return set_pred_instances(preds, samples, self.max_per_img, self.use_sigmoid)
