"""Matching costs by hand, and the assignment against a search over all permutations."""

import itertools
import math

import pytest
import torch

from ddetr.models.task_modules import (
    BBoxL1Cost,
    ClassificationCost,
    FocalLossCost,
    HungarianAssigner,
    IoUCost,
)
from ddetr.structures import SetTargets

COSTS = [
    {'type': 'FocalLossCost', 'weight': 2.0},
    {'type': 'BBoxL1Cost', 'weight': 5.0, 'box_format': 'xywh'},
    {'type': 'IoUCost', 'iou_mode': 'giou', 'weight': 2.0},
]


def random_boxes(count: int) -> torch.Tensor:
    return torch.cat([0.2 + 0.6 * torch.rand(count, 2), 0.05 + 0.3 * torch.rand(count, 2)], 1)


def test_costs_by_hand():
    logits, boxes = torch.tensor([[0.0, 2.0]]), torch.tensor([[0.5, 0.5, 0.2, 0.2]])
    targets = SetTargets(torch.tensor([1, 0]), torch.tensor([[0.5, 0.5, 0.2, 0.2], [0.6, 0.6, 0.2, 0.2]]))
    p = 1 / (1 + math.exp(-2.0))
    focal = 0.25 * (1 - p) ** 2 * -math.log(p) - 0.75 * p**2 * -math.log(1 - p)
    assert FocalLossCost(weight=2.0)(logits, boxes, targets)[0, 0].item() == pytest.approx(
        2 * focal, rel=1e-5
    )
    softmax = math.exp(2.0) / (1 + math.exp(2.0))
    assert ClassificationCost()(logits, boxes, targets)[0].tolist() == pytest.approx([-softmax, softmax - 1])
    assert BBoxL1Cost('xywh', 5.0)(logits, boxes, targets)[0].tolist() == pytest.approx([0, 1.0], abs=1e-6)
    assert BBoxL1Cost('xyxy', 5.0)(logits, boxes, targets)[0].tolist() == pytest.approx([0, 2.0], abs=1e-6)
    iou, hull = 1 / 7, 9 / 4  # overlap a quarter of a box, union 7 quarters, hull 9 quarters
    giou = iou - (hull - 7 / 4) / hull
    assert IoUCost('giou')(logits, boxes, targets)[0].tolist() == pytest.approx([-1, -giou], abs=1e-5)
    assert IoUCost('iou')(logits, boxes, targets)[0].tolist() == pytest.approx([-1, -iou], abs=1e-5)


def test_the_matching_is_the_cheapest_of_all_in_every_layer():
    assigner = HungarianAssigner(COSTS)
    logits, boxes = torch.randn(3, 5, 4), torch.stack([random_boxes(5) for _ in range(3)])
    targets = SetTargets(torch.tensor([0, 3, 1]), random_boxes(3))
    for n, match in enumerate(assigner.assign(logits, boxes, targets)):
        cost = sum(term(logits[n], boxes[n], targets) for term in assigner.match_costs)
        best = min(sum(cost[q, g] for g, q in enumerate(p)) for p in itertools.permutations(range(5), 3))
        torch.testing.assert_close(cost[match.query_index, match.target_index].sum(), best)
        assert sorted(match.target_index.tolist()) == [0, 1, 2]


def test_more_targets_than_queries_and_none_at_all():
    assigner = HungarianAssigner(COSTS)
    logits, boxes = torch.randn(2, 2, 4), random_boxes(4).view(2, 2, 4)
    many = assigner.assign(logits, boxes, SetTargets(torch.zeros(5, dtype=torch.int64), random_boxes(5)))
    assert all(len(set(m.query_index.tolist())) == len(m.target_index) == 2 for m in many)
    none = assigner.assign(logits, boxes, SetTargets(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 4)))
    assert [len(m.query_index) for m in none] == [0, 0]


def test_diverged_predictions_are_reported():
    logits, boxes = torch.full((1, 2, 4), torch.nan), random_boxes(2)[None]
    with pytest.raises(ValueError, match='2 of 2 matching costs are not finite'):
        HungarianAssigner(COSTS).assign(logits, boxes, SetTargets(torch.tensor([0]), random_boxes(1)))


def test_invalid_options_raise():
    with pytest.raises(ValueError, match='at least one'):
        HungarianAssigner([])
    with pytest.raises(ValueError, match="box_format='cxcywh'"):
        BBoxL1Cost('cxcywh')
    with pytest.raises(ValueError, match="iou_mode='diou'"):
        IoUCost('diou')
