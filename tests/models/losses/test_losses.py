"""Losses against formulas written out here, or against plain PyTorch."""

import math

import pytest
import torch
import torch.nn.functional as F

from ddetr.models.losses import CrossEntropyLoss, FocalLoss, GIoULoss, IoULoss, L1Loss, SmoothL1Loss


def test_focal_loss_is_the_papers_formula_and_background_is_the_last_label():
    logits, labels = torch.randn(6, 3, dtype=torch.float64), torch.tensor([0, 2, 3, 1, 3, 2])
    expected = 0.0
    for row, label in zip(logits.tolist(), labels.tolist(), strict=True):
        for k, x in enumerate(row):
            p = 1 / (1 + math.exp(-x))
            pt, alpha = (p, 0.25) if k == label else (1 - p, 0.75)
            expected += -alpha * (1 - pt) ** 2 * math.log(pt)
    assert FocalLoss(loss_weight=2.0)(logits, labels, avg_factor=4.0).item() == pytest.approx(
        2 * expected / 4
    )


def test_softmax_cross_entropy_weights_the_last_class_as_detr_does():
    logits, labels = torch.randn(8, 5), torch.tensor([0, 4, 4, 1, 4, 2, 4, 3])
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0, 0.1])
    total_weight = weights[labels].sum()
    ours = CrossEntropyLoss(bg_cls_weight=0.1, class_weight=1.0)(logits, labels, avg_factor=total_weight)
    torch.testing.assert_close(ours, F.cross_entropy(logits, labels, weights))


def test_binary_cross_entropy_of_one_logit_counts_label_0_as_object():
    logits, labels = torch.randn(6, 1), torch.tensor([0, 1, 1, 0, 0, 1])
    ours = CrossEntropyLoss(use_sigmoid=True)(logits, labels, weight=torch.tensor([1.0, 1, 0, 1, 1, 0]))
    terms = F.binary_cross_entropy_with_logits(logits[:, 0], (labels == 0).float(), reduction='none')
    torch.testing.assert_close(ours, (terms * torch.tensor([1.0, 1, 0, 1, 1, 0])).sum() / 6)


def test_box_losses_by_hand():
    pred, target = (
        torch.tensor([[0.0, 0, 2, 2]]),
        torch.tensor([[1.0, 1, 3, 3]]),
    )  # overlap 1, union 7, hull 9
    assert L1Loss()(pred, target).item() == 1.0
    assert SmoothL1Loss(beta=2.0)(pred, target).item() == 0.25
    assert GIoULoss()(pred, target).item() == pytest.approx(1 - (1 / 7 - 2 / 9), abs=1e-6)
    assert IoULoss()(pred, target).item() == pytest.approx(math.log(7), abs=1e-6)
    assert IoULoss(linear=True)(pred, target).item() == pytest.approx(6 / 7, abs=1e-6)


def test_weights_and_average_factor():
    pred, target = torch.zeros(3, 4), torch.tensor([[1.0] * 4, [2.0] * 4, [4.0] * 4])
    weight = torch.tensor([1.0, 0.0, 1.0])
    loss = L1Loss(loss_weight=5.0)(pred, target, weight=weight, avg_factor=2.0)
    assert loss.item() == 5 * (4 + 16) / 2
    per_box = GIoULoss(reduction='none')(pred + target, target, weight=weight[:, None].expand(3, 4))
    assert per_box.shape == (3,)


def test_invalid_options_raise():
    with pytest.raises(ValueError, match="reduction='avg' must be one of"):
        L1Loss(reduction='avg')
    with pytest.raises(ValueError, match='use_sigmoid=True'):
        FocalLoss(use_sigmoid=False)
    with pytest.raises(ValueError, match="mode='exp' must be one of"):
        IoULoss(mode='exp')
    with pytest.raises(ValueError, match='avg_factor'):
        L1Loss(reduction='sum')(torch.zeros(1, 4), torch.ones(1, 4), avg_factor=2.0)
