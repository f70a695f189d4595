"""Prediction head of Deformable DETR."""

from typing import Any

import torch
from mmengine.model import bias_init_with_prob
from torch import Tensor, nn

from ddetr.models.layers import build_box_mlp
from ddetr.models.set_prediction import SetHead
from ddetr.registry import MODELS
from ddetr.structures import DecoderInput, DecoderStates, SetPredictions

from .reset import CLASS_PRIOR, reset_linears


@MODELS.register_module()
class DeformableDETRHead(SetHead):
    """Class and box branches for each decoder layer, plus one of each for two-stage proposals.

    Args:
        num_classes: Number of classes, K.
        embed_dims: Embedding dimension, C.
        num_reg_fcs: Number of hidden layers in a box branch.
        share_pred_layer: Whether all layers share one branch, as without box refinement.
        num_pred_layer: Number of branches, including the one for proposals; set by the detector.
        as_two_stage: Whether the last branch predicts proposals; set by the detector.
        eps: Lower bound for the arguments of the inverse sigmoid's logarithms.
        **options: See `SetHead`.

    Raises:
        ValueError: A softmax classification loss.
    """

    def __init__(
        self,
        num_classes: int,
        embed_dims: int = 256,
        num_reg_fcs: int = 2,
        share_pred_layer: bool = True,
        num_pred_layer: int = 6,
        as_two_stage: bool = False,
        eps: float = 1e-5,
        **options: Any,
    ) -> None:
        super().__init__(num_classes, **options)
        if not self.use_sigmoid:
            raise ValueError(f'{type(self).__name__} needs a sigmoid loss: set loss_cls.use_sigmoid=True')
        self.as_two_stage, self.eps = as_two_stage, eps
        # a shared branch is listed under every index, as in checkpoints of this family
        made, times = (1, num_pred_layer) if share_pred_layer else (num_pred_layer, 1)
        class_branches = [nn.Linear(embed_dims, num_classes) for _ in range(made)]
        self.cls_branches: Any = nn.ModuleList(class_branches * times)
        box_branches = [build_box_mlp(embed_dims, num_reg_fcs) for _ in range(made)]
        self.reg_branches: Any = nn.ModuleList(box_branches * times)
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise class biases with a focal prior of 1% and box branches to predict their reference.

        Without two stages, the first box branch starts with small boxes (sigmoid(-2), a tenth of the image).
        """
        for cls_branch, reg_branch in zip(self.cls_branches, self.reg_branches, strict=True):
            nn.init.constant_(cls_branch.bias, bias_init_with_prob(CLASS_PRIOR))
            nn.init.zeros_(reg_branch[-1].weight)
            nn.init.zeros_(reg_branch[-1].bias)
        if not self.as_two_stage:
            nn.init.constant_(self.reg_branches[0][-1].bias[2:], -2.0)

    def reset_classes(self, num_classes: int) -> list[str]:
        """Reinitialise the class branches for `num_classes` classes. Return the names of the new tensors."""
        self.num_classes = num_classes
        return reset_linears(self, 'cls_branches', num_classes, CLASS_PRIOR)

    def predict_boxes(self, layer: int, hidden: Tensor, reference_norm: Tensor) -> Tensor:
        """Predict boxes as offsets from their references in logit space (appendix A.3).

        Args:
            layer: Index of the branch.
            hidden: (B, Q, C) decoder states.
            reference_norm: (B, Q, 2) points or (B, Q, 4) boxes.

        Returns:
            Boxes (B, Q, 4), cx cy w h in 0..1.
        """
        delta = self.reg_branches[layer](hidden).float()  # (B, Q, 4)
        start = inverse_sigmoid(reference_norm, self.eps)
        if start.shape[-1] == 2:  # reference points carry no size
            start = nn.functional.pad(start, (0, 2))
        return (delta + start).sigmoid()

    def predict_proposals(self, memory: Tensor, anchors_logit: Tensor) -> tuple[Tensor, Tensor]:
        """Class logits (B, S, K) and boxes (B, S, 4) from `memory` (B, S, C) and `anchors_logit` (B, S, 4)."""
        boxes = (self.reg_branches[-1](memory).float() + anchors_logit).sigmoid()
        return self.cls_branches[-1](memory), boxes

    def forward(self, states: DecoderStates, init: DecoderInput) -> SetPredictions:
        """Classify the queries of every layer. The boxes are already part of the decoder states."""
        logits = [branch(h) for branch, h in zip(self.cls_branches, states.hidden, strict=False)]
        return SetPredictions(torch.stack(logits), states.boxes_cxcywh_norm, init.groups, init.proposals)


def inverse_sigmoid(x: Tensor, eps: float = 1e-5) -> Tensor:
    """log(x / (1 - x)) with x clipped to 0..1 and the arguments of both logarithms clipped to at least `eps`."""
    # One clamp per term instead of clipping to 0..1 first: nested clamps and integer limits break torch.onnx.
    return (x.clamp(eps, 1.0) / (1 - x).clamp(eps, 1.0)).log()
