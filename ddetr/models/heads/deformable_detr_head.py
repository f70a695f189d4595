"""Deformable DETR's prediction branches."""

from collections.abc import Sequence

import torch
from mmengine.model import BaseModule, bias_init_with_prob
from torch import Tensor, nn

from ddetr.models.layers import build_box_mlp
from ddetr.models.set_prediction import build_criterion, set_pred_instances
from ddetr.registry import MODELS
from ddetr.structures import DecoderInput, DecoderStates, Samples, SetPredictions

from .reset import CLASS_PRIOR, reset_linears


@MODELS.register_module()
class DeformableDETRHead(BaseModule):
    """A class and a box branch for each decoder layer, one more of each for the two-stage proposals.

    Args:
        num_classes: K.
        embed_dims: C.
        num_reg_fcs: Hidden layers of the box branch.
        sync_cls_avg_factor: Accepted for MMDetection's configs; the number of objects is always averaged over
            the processes, as in the paper's code.
        loss_cls, loss_bbox, loss_iou: Configs of the losses; `loss_cls` must be a sigmoid loss.
        loss_terms: Configs of all loss terms, in place of these three; see `LossTerm`.
        train_cfg: `dict(assigner=...)`; without it the head only predicts.
        test_cfg: `dict(max_per_img=100)`.
        share_pred_layer: One branch for all layers, as without box refinement.
        num_pred_layer: Number of branches, the proposals' one included; given by the detector.
        as_two_stage: Whether the last branch predicts proposals; given by the detector.
        eps: Smallest argument of the inverse sigmoid's logarithms.

    Raises:
        ValueError: A softmax classification loss.
        ConfigError: See `build_criterion`.
    """

    LOSSES = {
        'loss_cls': {'type': 'FocalLoss', 'loss_weight': 2.0},
        'loss_bbox': {'type': 'L1Loss', 'loss_weight': 5.0},
        'loss_iou': {'type': 'GIoULoss', 'loss_weight': 2.0},
    }

    def __init__(
        self,
        num_classes: int,
        embed_dims: int = 256,
        num_reg_fcs: int = 2,
        sync_cls_avg_factor: bool = True,
        loss_cls: dict | None = None,
        loss_bbox: dict | None = None,
        loss_iou: dict | None = None,
        loss_terms: Sequence[dict] | None = None,
        train_cfg: dict | None = None,
        test_cfg: dict | None = None,
        share_pred_layer: bool = True,
        num_pred_layer: int = 6,
        as_two_stage: bool = False,
        eps: float = 1e-5,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        del sync_cls_avg_factor
        self.num_classes = num_classes
        self.as_two_stage = as_two_stage
        self.eps = eps
        losses = {'loss_cls': loss_cls, 'loss_bbox': loss_bbox, 'loss_iou': loss_iou}
        self.criterion = build_criterion(losses, self.LOSSES, loss_terms, train_cfg)
        if not all(getattr(term, 'use_sigmoid', True) for term in self.criterion.terms):
            raise ValueError(f'{type(self).__name__} classifies with sigmoids: set loss_cls.use_sigmoid=True')
        self.max_per_img = (test_cfg or {}).get('max_per_img', 100)

        def branches(make):
            if share_pred_layer:  # one module under every index, as in checkpoints of this family
                return nn.ModuleList([make()] * num_pred_layer)
            return nn.ModuleList(make() for _ in range(num_pred_layer))

        self.cls_branches = branches(lambda: nn.Linear(embed_dims, num_classes))
        self.reg_branches = branches(lambda: build_box_mlp(embed_dims, num_reg_fcs))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Focal prior of 1% for every class; box branches that start by predicting their reference.

        Without two stages the first branch starts with small boxes (a tenth of the image: sigmoid(-2)).
        """
        for cls_branch, reg_branch in zip(self.cls_branches, self.reg_branches, strict=True):
            nn.init.constant_(cls_branch.bias, bias_init_with_prob(CLASS_PRIOR))
            nn.init.zeros_(reg_branch[-1].weight)
            nn.init.zeros_(reg_branch[-1].bias)
        if not self.as_two_stage:
            nn.init.constant_(self.reg_branches[0][-1].bias[2:], -2.0)

    def reset_classes(self, num_classes: int) -> list[str]:
        """New class branches for `num_classes` classes; the names of their tensors."""
        self.num_classes = num_classes
        return reset_linears(self, 'cls_branches', num_classes, CLASS_PRIOR)

    def predict_boxes(self, layer: int, hidden: Tensor, reference_norm: Tensor) -> Tensor:
        """Boxes as offsets from their references, in logit space (appendix A.3).

        `hidden` (B, Q, C), `reference_norm` (B, Q, 2) points or (B, Q, 4) boxes -> (B, Q, 4) in 0..1.
        """
        delta = self.reg_branches[layer](hidden).float()  # (B, Q, 4)
        start = inverse_sigmoid(reference_norm, self.eps)
        if start.shape[-1] == 2:  # a point says nothing about the size
            start = nn.functional.pad(start, (0, 2))
        return (delta + start).sigmoid()

    def predict_proposals(self, memory: Tensor, anchors_logit: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, S, K) and boxes (B, S, 4) of `memory` (B, S, C) and `anchors_logit` (B, S, 4)."""
        boxes = (self.reg_branches[-1](memory) + anchors_logit).float().sigmoid()
        return self.cls_branches[-1](memory), boxes

    def forward(self, states: DecoderStates, init: DecoderInput) -> SetPredictions:
        """Classify every layer's queries; their boxes came with the decoder's states."""
        logits = [branch(h) for branch, h in zip(self.cls_branches, states.hidden, strict=False)]
        return SetPredictions(torch.stack(logits), states.boxes_cxcywh_norm, init.groups, init.proposals)

    def loss(self, preds: SetPredictions, samples: Samples) -> dict[str, Tensor]:
        """See `SetCriterion.forward`."""
        return self.criterion(preds, samples)

    def predict(self, preds: SetPredictions, samples: Samples) -> Samples:
        """Set each sample's `pred_instances` from the last layer's set."""
        return set_pred_instances(preds, samples, self.max_per_img, use_sigmoid=True)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)) of values clipped to 0..1, both logarithms' arguments at least `eps`."""
    x = x.clamp(0, 1)
    return (x.clamp(min=eps) / (1 - x).clamp(min=eps)).log()
