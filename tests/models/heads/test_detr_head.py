"""DETR's head: its branches, what it selects, what it divides the classification loss by."""

import math

import pytest
import torch
from mmengine.structures import InstanceData

from ddetr.models.heads import DETRHead
from ddetr.structures import DetDataSample, SetPredictions

FOCAL = {'type': 'FocalLoss', 'loss_weight': 2.0}
TRAIN_CFG = {'assigner': {'type': 'HungarianAssigner', 'match_costs': [{'type': 'ClassificationCost'}]}}
LOGITS = torch.tensor(  # 3 classes and "no object"
    [[2.0, 0.0, 1.0, 3.0], [0.0, 4.0, 0.0, 0.0], [1.0, 1.5, -1.0, 0.0], [-2.0, -2.0, 0.5, 6.0]]
)
BOXES = torch.tensor(  # the last one reaches out of the image
    [[0.5, 0.5, 0.2, 0.4], [0.25, 0.5, 0.1, 0.1], [0.1, 0.2, 0.1, 0.2], [0.9, 0.1, 0.4, 0.4]]
)
IMG_SHAPE, SCALE_WH = (60, 80), (2.0, 1.5)


def predictions(logits: torch.Tensor) -> SetPredictions:
    """One image's set in two decoder layers, the first of which is not to be looked at."""
    return SetPredictions(torch.stack([-logits, logits])[:, None], torch.stack([1 - BOXES, BOXES])[:, None])


def sample_with(boxes: list, labels: list) -> DetDataSample:
    sample = DetDataSample(metainfo={'img_shape': IMG_SHAPE, 'scale_factor': SCALE_WH})
    sample.gt_instances = InstanceData(
        bboxes=torch.tensor(boxes).reshape(-1, 4), labels=torch.tensor(labels, dtype=torch.int64)
    )
    return sample


def original_pixels(query: int) -> list[float]:
    cx, cy, w, h = BOXES[query].tolist()
    corners = (cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2)
    sides, scale = (80, 60, 80, 60), (*SCALE_WH, *SCALE_WH)
    return [min(max(c, 0.0), 1.0) * side / s for c, side, s in zip(corners, sides, scale, strict=True)]


def check_detections(found: InstanceData, expected: list[tuple[float, int, int]]) -> None:
    """`expected` (score, query, label), best first."""
    assert found.labels.tolist() == [label for _, _, label in expected]
    torch.testing.assert_close(found.scores, torch.tensor([score for score, _, _ in expected]))
    torch.testing.assert_close(found.bboxes, torch.tensor([original_pixels(q) for _, q, _ in expected]))


def test_softmax_takes_the_best_class_of_each_query_but_never_no_object():
    expected = []
    for query, row in enumerate(LOGITS.tolist()):
        total = sum(math.exp(x) for x in row)
        probabilities = [math.exp(x) / total for x in row[:-1]]
        expected.append((max(probabilities), query, probabilities.index(max(probabilities))))
    expected.sort(reverse=True)
    head = DETRHead(num_classes=3, embed_dims=8)
    (sample,) = head.predict(predictions(LOGITS), [sample_with([], [])])
    check_detections(sample.pred_instances, expected)

    head = DETRHead(num_classes=3, embed_dims=8, test_cfg={'max_per_img': 2})
    (sample,) = head.predict(predictions(LOGITS), [sample_with([], [])])
    check_detections(sample.pred_instances, expected[:2])


def test_sigmoid_chooses_among_all_pairs_of_query_and_class():
    logits = LOGITS[:, :3] + torch.arange(12).view(4, 3) * 1e-3  # no ties
    pairs = [
        (1 / (1 + math.exp(-x)), query, label)
        for query, row in enumerate(logits.tolist())
        for label, x in enumerate(row)
    ]
    head = DETRHead(num_classes=3, embed_dims=8, loss_cls=FOCAL, test_cfg={'max_per_img': 5})
    (sample,) = head.predict(predictions(logits), [sample_with([], [])])
    expected = sorted(pairs, reverse=True)[:5]
    assert len({query for _, query, _ in expected}) < 5  # a query gave two detections
    check_detections(sample.pred_instances, expected)


def test_branches_have_the_classes_and_the_start_of_their_loss():
    states = torch.zeros(6, 2, 5, 8)
    softmax, sigmoid = (DETRHead(num_classes=3, embed_dims=8, loss_cls=loss) for loss in (None, FOCAL))
    assert softmax(states).cls_logits.shape == (6, 2, 5, 4)
    assert softmax(states).boxes_cxcywh_norm.shape == (6, 2, 5, 4)
    logits = sigmoid(states).cls_logits
    torch.testing.assert_close(logits.sigmoid(), torch.full((6, 2, 5, 3), 0.01))


@pytest.mark.parametrize(('bg_weight', 'class_weight'), [(0.1, None), (0.1, 1.0), (0.0, 1.0), (None, None)])
def test_classification_loss_is_the_weighted_mean_over_queries(bg_weight, class_weight):
    loss_cls = {'type': 'CrossEntropyLoss', 'bg_cls_weight': bg_weight, 'class_weight': class_weight}
    head = DETRHead(num_classes=3, embed_dims=8, loss_cls=loss_cls, train_cfg=TRAIN_CFG)
    sample = sample_with([[0.0, 0.0, 10.0, 10.0], [5.0, 5.0, 20.0, 20.0]], [1, 0])
    losses = head.loss(predictions(LOGITS), [sample])
    labels = torch.tensor([3, 1, 0, 3])  # by the cheapest matching: query 1 for class 1, query 2 for class 0
    weights = torch.tensor([1.0, 1.0, 1.0, 1.0 if bg_weight is None else bg_weight])
    expected = torch.nn.functional.cross_entropy(LOGITS, labels, weights)
    torch.testing.assert_close(losses['loss_cls'], expected)
    assert losses.keys() == {f'{p}loss_{term}' for p in ('', 'd0.') for term in ('cls', 'bbox', 'iou')}


def test_training_without_an_assigner_raises():
    with pytest.raises(ValueError, match='built without train_cfg'):
        DETRHead(num_classes=3, embed_dims=8).loss(predictions(LOGITS), [sample_with([], [])])
