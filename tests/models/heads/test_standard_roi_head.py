import math

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from torch import Tensor, nn

from ddetr.models.heads import StandardRoIHead
from ddetr.registry import MODELS
from ddetr.structures import DetDataSample, Proposals, RoIPredictions

OBJECT = [8.0, 8.0, 24.0, 24.0]
PROPOSALS = [
    [8.0, 8.0, 24.0, 26.0],  # the object, nearly
    [0.0, 0.0, 8.0, 8.0],
    [24.0, 0.0, 40.0, 16.0],
    [12.0, 20.0, 28.0, 36.0],  # overlaps it by less than half
]


def head(sampler: dict | None = None, ignore_iof_thr: float = -1, **bbox_head) -> StandardRoIHead:
    cfg = {
        'type': 'StandardRoIHead',
        'bbox_roi_extractor': {
            'type': 'SingleRoIExtractor',
            'roi_layer': {'type': 'RoIAlign', 'output_size': 2, 'sampling_ratio': 2},
            'out_channels': 3,
            'featmap_strides': [4],
        },
        'bbox_head': {
            'type': 'Shared2FCBBoxHead',
            'in_channels': 3,
            'roi_feat_size': 2,
            'fc_out_channels': 8,
            'num_classes': 2,
            'bbox_coder': {'type': 'DeltaXYWHBBoxCoder', 'target_stds': [0.1, 0.1, 0.2, 0.2]},
            'loss_cls': {'type': 'CrossEntropyLoss'},
            'loss_bbox': {'type': 'L1Loss'},
            **bbox_head,
        },
        'train_cfg': {
            'assigner': {
                'type': 'MaxIoUAssigner',
                'pos_iou_thr': 0.5,
                'neg_iou_thr': 0.5,
                'match_low_quality': False,
                'ignore_iof_thr': ignore_iof_thr,
            },
            'sampler': {'type': 'RandomSampler', 'num': 100, 'pos_fraction': 0.5, **(sampler or {})},
        },
        'test_cfg': {'score_thr': 0.0, 'nms': {'iou_threshold': 0.5}, 'max_per_img': 100},
    }
    result = MODELS.build(cfg)
    for parameter in result.parameters():
        nn.init.normal_(parameter, std=0.5)
    return result


def sample(crowds: list[list[float]] | None = None) -> DetDataSample:
    result = DetDataSample(metainfo={'img_shape': (40, 40)})
    result.gt_instances = InstanceData(bboxes=torch.tensor([OBJECT]), labels=torch.tensor([1]))
    if crowds is not None:
        result.ignored_instances = InstanceData(bboxes=torch.tensor(crowds))
    return result


def inputs() -> tuple[list[Tensor], list[Proposals]]:
    return [torch.randn(1, 3, 10, 10)], [Proposals(torch.tensor(PROPOSALS), torch.ones(len(PROPOSALS)))]


def test_losses_by_hand():
    roi_head = head()
    feats, proposals = inputs()
    losses = roi_head.loss(feats, proposals, [sample()])
    preds = roi_head(feats, [torch.tensor([OBJECT, *PROPOSALS])])  # the object itself joins the proposals
    labels = torch.tensor([1, 1, 2, 2, 2])
    torch.testing.assert_close(losses['loss_cls'], F.cross_entropy(preds.logits, labels))
    # the nearly right box is 16 x 18 around (16, 17), the object 16 x 16 around (16, 16)
    target = torch.tensor([[0.0, 0, 0, 0], [0, -1 / 18 / 0.1, 0, math.log(16 / 18) / 0.2]])
    of_class_1 = preds.deltas[:2, 4:]
    torch.testing.assert_close(losses['loss_bbox'], (of_class_1 - target).abs().sum() / 5)
    right = (preds.logits.argmax(1) == labels).float().mean()
    torch.testing.assert_close(losses['acc'], 100 * right)


def test_options_of_the_box_loss():
    feats, proposals = inputs()
    only_proposals = {'add_gt_as_proposals': False}
    agnostic = head(sampler=only_proposals, reg_class_agnostic=True)
    loss = agnostic.loss(feats, proposals, [sample()])['loss_bbox']
    deltas = agnostic(feats, [torch.tensor(PROPOSALS)]).deltas
    assert deltas.shape == (4, 4)
    target = torch.tensor([0, -1 / 18 / 0.1, 0, math.log(16 / 18) / 0.2])
    torch.testing.assert_close(loss, (deltas[0] - target).abs().sum() / 4)

    decoded = head(sampler=only_proposals, reg_decoded_bbox=True)
    loss = decoded.loss(feats, proposals, [sample()])['loss_bbox']
    dx, dy, dw, dh = (
        decoded(feats, [torch.tensor(PROPOSALS)]).deltas[0, 4:] * torch.tensor([0.1, 0.1, 0.2, 0.2])
    ).tolist()
    cx, cy, w, h = 16 + 16 * dx, 17 + 18 * dy, 16 * math.exp(dw), 18 * math.exp(dh)
    box = torch.tensor([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2])
    torch.testing.assert_close(loss, (box - torch.tensor(OBJECT)).abs().sum() / 4)


def test_object_weights_are_applied():
    roi_head = head(sampler={'add_gt_as_proposals': False})
    feats, proposals = inputs()
    preds = roi_head(feats, [torch.tensor(PROPOSALS)])
    light = roi_head.loss(feats, proposals, [sample()])['loss_cls']
    roi_head.train_cfg = {'pos_weight': 3.0}
    heavy = roi_head.loss(feats, proposals, [sample()])['loss_cls']
    object_term = F.cross_entropy(preds.logits[:1], torch.tensor([1]))
    torch.testing.assert_close(heavy - light, 2 * object_term / 4)


def test_regions_in_a_crowd_are_not_trained_on():
    feats, proposals = inputs()
    crowd = [[22.0, 0.0, 40.0, 10.0]]  # 10 of the 16 rows of the third proposal lie in it
    roi_head = head(sampler={'add_gt_as_proposals': False}, ignore_iof_thr=0.5)
    loss = roi_head.loss(feats, proposals, [sample(crowd)])['loss_cls']
    preds = roi_head(feats, [torch.tensor(PROPOSALS)])
    kept, labels = torch.tensor([0, 1, 3]), torch.tensor([1, 2, 2])
    torch.testing.assert_close(loss, F.cross_entropy(preds.logits[kept], labels))


def test_ohem_trains_on_the_regions_with_the_highest_loss():
    options = {'type': 'OHEMSampler', 'num': 3, 'pos_fraction': 0.34, 'add_gt_as_proposals': False}
    roi_head = head(sampler=options)
    feats, proposals = inputs()
    loss = roi_head.loss(feats, proposals, [sample()])['loss_cls']
    preds = roi_head(feats, [torch.tensor(PROPOSALS)])
    each = F.cross_entropy(preds.logits, torch.tensor([1, 2, 2, 2]), reduction='none')
    torch.testing.assert_close(loss, (each[0] + each[1:].topk(2).values.sum()) / 3)


def test_an_image_without_objects_or_proposals_gives_finite_losses():
    roi_head = head()
    nothing = sample()
    nothing.gt_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0, dtype=torch.int64))
    empty = [Proposals(torch.zeros(0, 4), torch.zeros(0))]
    losses = roi_head.loss(inputs()[0], empty, [nothing])
    assert losses['loss_cls'] == losses['loss_bbox'] == 0
    (losses['loss_cls'] + losses['loss_bbox']).backward()
    assert len(roi_head.predict(inputs()[0], empty, [nothing])[0]) == 0


def test_detections_are_clipped_suppressed_within_classes_and_best_first():
    roi_head = head()
    boxes = torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [30, 30, 60, 60]])
    # log-probabilities as logits: classes 0 and 1, background
    logits = torch.tensor([[0.6, 0.3, 0.1], [0.5, 0.45, 0.05], [0.04, 0.16, 0.8]]).log()
    preds = RoIPredictions(logits, torch.zeros(3, 8))
    cfg = {'score_thr': 0.05, 'nms': {'type': 'nms', 'iou_threshold': 0.5}, 'max_per_img': 100}
    found = roi_head.bbox_head.detect(preds, boxes, (50, 40), cfg)
    # (h, w) = (50, 40); class 0 of the second region is suppressed by the first, class 1 the other way round
    torch.testing.assert_close(
        found.bboxes, torch.tensor([[0.0, 0, 20, 20], [1, 0, 21, 20], [30, 30, 40, 50]])
    )
    torch.testing.assert_close(found.scores, torch.tensor([0.6, 0.45, 0.16]))
    assert found.labels.tolist() == [0, 1, 1]
    few = roi_head.bbox_head.detect(preds, boxes, (50, 40), {**cfg, 'max_per_img': 2})
    assert few.labels.tolist() == [0, 1]
    large = roi_head.bbox_head.detect(preds, boxes, (50, 40), {**cfg, 'min_bbox_size': 10})
    assert large.labels.tolist() == [0, 1]  # the third is 10 wide, not more


def test_each_class_moves_the_region_by_its_own_deltas():
    roi_head = head()
    deltas = torch.tensor([[1.0, 0, 0, 0, 0, -1.0, 0, 0]])  # class 0 to the right by 0.1 widths, class 1 up
    preds = RoIPredictions(torch.tensor([[2.0, 1.0, 0.0]]), deltas)
    cfg = {'score_thr': 0.0, 'nms': {'iou_threshold': 0.5}, 'max_per_img': -1}
    found = roi_head.bbox_head.detect(preds, torch.tensor([[10.0, 10, 30, 30]]), (100, 100), cfg)
    torch.testing.assert_close(found.bboxes, torch.tensor([[12.0, 10, 32, 30], [10, 8, 30, 28]]))


def test_a_sigmoid_classifier_is_refused():
    with pytest.raises(ValueError, match='needs a softmax loss'):
        head(loss_cls={'type': 'CrossEntropyLoss', 'use_sigmoid': True})
