"""The set loss against an independent formulation: loops over pairs, scipy's matching, torchvision's losses."""

import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData
from scipy.optimize import linear_sum_assignment
from torch import nn
from torchvision.ops import box_convert, generalized_box_iou, generalized_box_iou_loss, sigmoid_focal_loss

from ddetr.models.set_prediction import build_criterion
from ddetr.registry import MODELS
from ddetr.structures import DetDataSample, EncoderProposals, Matching, QueryGroup, SetPredictions
from ddetr.utils import ConfigError

CLASSES, LAYERS, QUERIES = 5, 2, 24
SIZES_HW = [(40, 60), (50, 30)]
ASSIGNER = {
    'type': 'HungarianAssigner',
    'match_costs': [
        {'type': 'FocalLossCost', 'weight': 2.0},
        {'type': 'BBoxL1Cost', 'weight': 5.0, 'box_format': 'xywh'},
        {'type': 'IoUCost', 'iou_mode': 'giou', 'weight': 2.0},
    ],
}
LOSSES = {
    'loss_cls': {'type': 'FocalLoss', 'loss_weight': 2.0},
    'loss_bbox': {'type': 'L1Loss', 'loss_weight': 5.0},
    'loss_iou': {'type': 'GIoULoss', 'loss_weight': 2.0},
}
ALL = (QueryGroup(slice(None)),)
NONE = dict.fromkeys(LOSSES)


def criterion(loss_terms=None, extras=(), **losses):
    return build_criterion({**NONE, **losses}, LOSSES, loss_terms, {'assigner': ASSIGNER}, extras)


def samples(counts=(3, 2)):
    result = []
    for (height, width), count in zip(SIZES_HW, counts, strict=True):
        corners = torch.rand(count, 2, 2).sort(1).values.flatten(1) * torch.tensor([width, height] * 2)
        sample = DetDataSample(metainfo={'img_shape': (height, width)})
        sample.gt_instances = InstanceData(
            bboxes=corners + torch.tensor([0.0, 0.0, 2.0, 2.0]), labels=torch.randint(CLASSES, (count,))
        )
        result.append(sample)
    return result


def predictions(groups=ALL, proposals=None, **extras):
    logits = torch.randn(LAYERS, 2, QUERIES, CLASSES)
    boxes = torch.rand(LAYERS, 2, QUERIES, 4) * 0.5 + 0.2
    return SetPredictions(logits, boxes, groups, proposals, extras)


def independent(logits, boxes, truth, pairs=None, repeats=1):
    """Losses of one set (B, Q, K), (B, Q, 4); `pairs`: per image, lists of (query, object)."""
    cls = bbox = giou = 0.0
    count = 0
    for b, sample in enumerate(truth):
        height, width = sample.img_shape
        side = torch.tensor([width, height, width, height])
        true = box_convert(sample.gt_instances.bboxes, 'xyxy', 'cxcywh') / side
        labels = sample.gt_instances.labels
        if pairs is None:
            prob = logits[b].sigmoid()
            focal = 0.25 * (1 - prob) ** 2 * -prob.log() - 0.75 * prob**2 * -(1 - prob).log()
            cost = 2 * focal[:, labels] + 5 * (boxes[b][:, None] - true).abs().sum(-1)
            corners = box_convert(boxes[b], 'cxcywh', 'xyxy')
            cost = cost - 2 * generalized_box_iou(corners, box_convert(true, 'cxcywh', 'xyxy'))
            rows, columns = linear_sum_assignment(cost.detach().repeat(1, repeats).numpy())
            matched = [(q, int(c) % len(labels)) for q, c in zip(rows.tolist(), columns, strict=True)]
        else:
            matched = pairs[b]
        target = torch.zeros_like(logits[b])
        for query, obj in matched:
            target[query, labels[obj]] = 1
            bbox = bbox + (boxes[b][query] - true[obj]).abs().sum()
            in_px = [box_convert(x * side, 'cxcywh', 'xyxy')[None] for x in (boxes[b][query], true[obj])]
            giou = giou + generalized_box_iou_loss(*in_px).sum()
        cls = cls + sigmoid_focal_loss(logits[b], target).sum()
        count += len(matched)
    return {'loss_cls': 2 * cls / count, 'loss_bbox': 5 * bbox / count, 'loss_iou': 2 * giou / count}


def check(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(
            found[name], value, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f'{n}: {m}'
        )


def test_each_group_has_its_own_queries_matching_and_count():
    truth = samples()
    fixed = [[(0, 0), (1, 1), (2, 2), (4, 0)], [(0, 0), (1, 1), (4, 0), (5, 1)]]
    matches = tuple(Matching(*torch.tensor(pairs).unbind(1)) for pairs in fixed)
    groups = (
        QueryGroup(slice(0, 7)),
        QueryGroup(slice(7, 13), 'dn_', matches),
        QueryGroup(slice(13, 24), 'o2m_', repeats=3, loss_weight=0.5),
    )
    preds = predictions(groups)
    expected = {}
    for n, prefix in ((1, ''), (0, 'd0.')):
        for group, pairs, repeats in zip(groups, (None, fixed, None), (1, 1, 3), strict=True):
            logits, boxes = (
                preds.cls_logits[n][:, group.queries],
                preds.boxes_cxcywh_norm[n][:, group.queries],
            )
            part = independent(logits, boxes, truth, pairs, repeats)
            expected |= {f'{prefix}{group.name}{k}': v * group.loss_weight for k, v in part.items()}
    check(criterion()(preds, truth), expected)


@pytest.mark.parametrize('by_class', [False, True])
def test_proposals_are_trained_with_classes_or_as_objects(by_class):
    truth = samples()
    proposals = EncoderProposals(torch.randn(2, 11, CLASSES), torch.rand(2, 11, 4) * 0.5 + 0.2, by_class)
    found = criterion()(predictions(proposals=proposals), truth)
    if not by_class:
        for sample in truth:
            sample.gt_instances.labels.zero_()
    expected = independent(proposals.cls_logits, proposals.boxes_cxcywh_norm, truth)
    check(
        {k: v for k, v in found.items() if k.startswith('enc_')}, {f'enc_{k}': v for k, v in expected.items()}
    )


def test_groups_without_queries_or_objects_give_zero_with_a_gradient():
    groups = (
        QueryGroup(slice(0, 24)),
        QueryGroup(slice(24, 24), 'dn_', (Matching(*torch.zeros(2, 0, dtype=torch.int64)),) * 2),
    )
    preds = predictions(groups)
    logits = preds.cls_logits.requires_grad_()
    losses = criterion()(preds._replace(cls_logits=logits), samples((0, 0)))
    assert losses['dn_loss_cls'] == losses['d0.dn_loss_iou'] == losses['loss_bbox'] == 0
    sum(losses.values()).backward()
    assert logits.grad.isfinite().all()


def _varifocal(logit, iou):
    if iou:
        return iou * F.binary_cross_entropy_with_logits(logit, iou)
    return 0.6 * logit.sigmoid() ** 1.5 * F.softplus(logit)


def _align(logit, iou):
    prob = logit.sigmoid()
    if iou is None:
        return prob**1.5 * F.softplus(logit)
    target = (prob**0.6 * iou**0.4).clamp(min=0.01)
    return -target * F.logsigmoid(logit) - (1 - target) * F.logsigmoid(-logit)


@pytest.mark.parametrize(('kind', 'expected'), [('VarifocalTerm', _varifocal), ('AlignTerm', _align)])
def test_quality_aware_targets_follow_the_ious_of_the_matched_pairs(kind, expected):
    truth = samples((1, 1))
    matches = tuple(Matching(torch.tensor([q]), torch.tensor([0])) for q in (2, 4))
    preds = predictions((QueryGroup(slice(None), '', matches),))
    term = {'type': kind, 'alpha': 0.6, 'gamma': 1.5, 'loss_weight': 3.0}
    found = criterion([term])(preds, truth)['loss_cls']
    assert criterion(loss_cls=term)(preds, truth)['loss_cls'] == found  # in place of a loss of labels, too
    total = 0.0
    for b, query in enumerate((2, 4)):
        height, width = SIZES_HW[b]
        box = box_convert(preds.boxes_cxcywh_norm[-1, b, query], 'cxcywh', 'xyxy') * torch.tensor(
            [width, height] * 2
        )
        true, label = truth[b].gt_instances.bboxes[0], int(truth[b].gt_instances.labels[0])
        x1, y1 = torch.max(box[:2], true[:2])
        x2, y2 = torch.min(box[2:], true[2:])
        overlap = (x2 - x1).clamp(min=0) * (y2 - y1).clamp(min=0)
        iou = overlap / sum((t[2] - t[0]) * (t[3] - t[1]) for t in (box, true)).sub(overlap)
        for q in range(QUERIES):
            for k in range(CLASSES):
                logit = preds.cls_logits[-1, b, q, k]
                total += expected(logit, iou if (q, k) == (query, label) else None)
    torch.testing.assert_close(found, 3 * total / 2, rtol=1e-5, atol=1e-6)


@MODELS.register_module()
class CountTerm(nn.Module):
    """A term of somebody else's, which reads what the head predicts beside classes and boxes."""

    needs = ('depth',)

    def forward(self, matched):
        depth = matched.extras['depth'][matched.image_index, matched.query_index]
        return {'loss_depth': depth.sum() / matched.num_pairs, 'pairs': matched.num_pairs}


def test_a_users_term_reads_extras_of_its_group():
    terms = [{'type': 'ClassTerm', 'loss': LOSSES['loss_cls']}, {'type': 'CountTerm'}]
    fixed = tuple(Matching(torch.tensor([0, 3]), torch.tensor([0, 1])) for _ in range(2))
    depth = torch.arange(float(LAYERS * 2 * QUERIES)).view(LAYERS, 2, QUERIES)
    preds = predictions((QueryGroup(slice(0, 4)), QueryGroup(slice(4, 24), 'dn_', fixed)), depth=depth)
    losses = criterion(terms, ['depth'])(preds, samples())
    assert losses['pairs'] == 5
    assert losses['dn_pairs'] == 4
    assert losses['d0.dn_loss_depth'] == (depth[0, :, 4] + depth[0, :, 7]).sum() / 4


def test_invalid_terms_raise():
    with pytest.raises(ConfigError, match="CountTerm needs 'depth', which this head does not predict"):
        criterion([{'type': 'ClassTerm', 'loss': LOSSES['loss_cls']}, {'type': 'CountTerm'}])
    with pytest.raises(ConfigError, match='loss_terms cannot be combined with loss_iou: set loss_iou=None'):
        criterion([{'type': 'VarifocalTerm'}], loss_iou=LOSSES['loss_iou'])
    with pytest.raises(ConfigError, match='no classification term'):
        criterion([{'type': 'BoxTerm', 'loss': LOSSES['loss_bbox']}])
