import pytest
import torch
import torch.nn.functional as F
from mmengine.structures import InstanceData

from ddetr.models.heads import RPNHead
from ddetr.registry import MODELS
from ddetr.structures import AnchorPredictions, DetDataSample

ASSIGNER = {'type': 'MaxIoUAssigner', 'pos_iou_thr': 0.7, 'neg_iou_thr': 0.3, 'min_pos_iou': 0.3}


def head(sampler: dict | None = None, **options) -> RPNHead:
    """Square anchors of side 16 at stride 8, one level; every anchor is sampled."""
    train_cfg = {
        'assigner': {**ASSIGNER, **options.pop('assigner', {})},
        'sampler': sampler
        or {'type': 'RandomSampler', 'num': 1000, 'pos_fraction': 0.5, 'add_gt_as_proposals': False},
        **options.pop('train_cfg', {}),
    }
    cfg = {
        'type': 'RPNHead',
        'in_channels': 4,
        'feat_channels': 4,
        'anchor_generator': {'type': 'AnchorGenerator', 'scales': [2], 'ratios': [1.0], 'strides': [8]},
        'bbox_coder': {'type': 'DeltaXYWHBBoxCoder'},
        'loss_cls': {'type': 'CrossEntropyLoss', 'use_sigmoid': True},
        'loss_bbox': {'type': 'L1Loss'},
        'train_cfg': train_cfg,
        **options,
    }
    return MODELS.build(cfg)


def sample(
    gts: list[list[float]], crowds: list[list[float]] = (), size: tuple[int, int] = (32, 40)
) -> DetDataSample:
    result = DetDataSample(metainfo={'img_shape': size, 'pad_shape': size})
    result.gt_instances = InstanceData(
        bboxes=torch.tensor(gts).reshape(-1, 4), labels=torch.zeros(len(gts), dtype=torch.int64)
    )
    if crowds:
        result.ignored_instances = InstanceData(bboxes=torch.tensor(crowds))
    return result


def cells(preds: AnchorPredictions) -> torch.Tensor:
    """The first level's logits of the first image's 4 x 5 cells."""
    return preds.logits[0][0].view(4, 5)


def trained_cells(rpn: RPNHead, image: DetDataSample) -> torch.Tensor:
    """(4, 5) bool: whose logits get a gradient, in a batch padded to 32 x 40."""
    preds = rpn([torch.randn(1, 4, 4, 5)], (32, 40))
    preds.logits[0].retain_grad()
    rpn.loss(preds, [image])['loss_rpn_cls'].backward()
    return preds.logits[0].grad.view(4, 5) != 0


def test_losses_by_hand():
    rpn = head()
    preds = rpn([torch.randn(2, 4, 4, 5)], (32, 40))
    # (8, 8)-(24, 24) is exactly the anchor of cell (2, 2); its neighbours overlap it by 1/3: neither, nor
    object_at = sample([[8.0, 8.0, 24.0, 24.0]])
    losses = rpn.loss(preds, [object_at, sample([])])
    logits = [preds.logits[0][i].view(4, 5) for i in (0, 1)]
    neither = torch.zeros(4, 5, dtype=torch.bool)
    neither[1, 2] = neither[3, 2] = neither[2, 1] = neither[2, 3] = True
    background = ~neither
    background[2, 2] = False
    terms = [
        F.softplus(-logits[0][2, 2])[None],
        F.softplus(logits[0][background]),
        F.softplus(logits[1].flatten()),
    ]
    count = 1 + 15 + 20
    torch.testing.assert_close(losses['loss_rpn_cls'], torch.cat(terms).sum() / count)
    deltas = preds.deltas[0][0].view(4, 5, 4)[2, 2]  # the anchor is the object: the target is 0
    torch.testing.assert_close(losses['loss_rpn_bbox'], deltas.abs().sum() / count)


def test_an_iou_loss_compares_decoded_boxes():
    rpn = head(reg_decoded_bbox=True, loss_bbox={'type': 'GIoULoss'})
    preds = rpn([torch.zeros(1, 4, 4, 5)], (32, 40))
    preds.deltas[0].detach().zero_()
    preds.deltas[0].data[0, 12] = torch.tensor([0.5, 0.0, 0.0, 0.0])  # half a side to the right: IoU 1/3
    losses = rpn.loss(preds, [sample([[8.0, 8.0, 24.0, 24.0]])])
    torch.testing.assert_close(losses['loss_rpn_bbox'], torch.tensor((1 - 1 / 3) / 16))


def test_anchors_in_the_padding_are_trained_only_if_enabled():
    image = sample([[8.0, 8.0, 24.0, 24.0]], size=(16, 24))
    inside = torch.zeros(4, 5, dtype=torch.bool)
    inside[:2, :3] = True
    # the object's own anchor, in cell (2, 2), begins just beyond the border
    assert trained_cells(head(assigner={'min_pos_iou': 1.0}), image)[~inside].sum() == 0
    assert (
        trained_cells(head(train_cfg={'use_padding': True}), image)[~inside].sum() == 11
    )  # not its 3 neighbours


def test_anchors_too_far_outside_are_ignored():
    image = sample([[8.0, 8.0, 24.0, 24.0]])
    trained = trained_cells(head(train_cfg={'allowed_border': 0}), image)
    # of anchors of side 16 around (8 x, 8 y), those of x = 1..3 and y = 1..2 lie within 40 x 32, not touching
    # its right and lower border; of those, the neighbours of the object's anchor are neither
    expected = torch.zeros(4, 5, dtype=torch.bool)
    expected[1, 1] = expected[1, 3] = expected[2, 2] = True
    assert torch.equal(trained, expected)


def test_crowds_are_neither_object_nor_background():
    crowd = [[0.0, 0.0, 40.0, 12.0]]
    image = sample([[8.0, 16.0, 24.0, 32.0]], crowds=crowd)
    as_background = trained_cells(head(), image)
    left_out = trained_cells(head(assigner={'ignore_iof_thr': 0.5}), image)
    rows = torch.zeros(4, 5, dtype=torch.bool)
    rows[1] = True  # of the anchors around y = 8, 12 of 16 rows lie in the crowd; around y = 0, half
    assert as_background[1].all()
    # at the left border, the anchor around x = 0 lies half outside the crowd
    rows[1, 0] = False
    assert torch.equal(as_background & ~left_out, rows)


def test_object_weights_are_applied():
    image = sample([[8.0, 8.0, 24.0, 24.0]])
    rpn, heavy = head(), head(train_cfg={'pos_weight': 3.0})
    preds = rpn([torch.randn(1, 4, 4, 5)], (32, 40))
    more = heavy.loss(preds, [image])['loss_rpn_cls'] - rpn.loss(preds, [image])['loss_rpn_cls']
    torch.testing.assert_close(more, 2 * F.softplus(-cells(preds)[2, 2]) / 16)


def test_proposals_are_the_best_of_each_level_after_suppression():
    rpn = head(
        anchor_generator={'type': 'AnchorGenerator', 'scales': [2], 'ratios': [1.0], 'strides': [8, 16]}
    )
    preds = rpn([torch.zeros(1, 4, 4, 5), torch.zeros(1, 4, 2, 3)], (32, 40))
    for deltas in preds.deltas:
        deltas.data.zero_()
    preds.logits[0].data[:] = torch.linspace(-3, 3, 20)  # the best are the last cells
    preds.logits[1].data[:] = torch.tensor([1.0, 9.0, 1.0, 1.0, 1.0, 2.0])
    cfg = {'nms_pre': 2, 'max_per_img': 3, 'nms': {'type': 'nms', 'iou_threshold': 0.3}, 'min_bbox_size': 0}
    (found,) = rpn.propose(preds, [(30, 38)], cfg)
    # level 0: cells (3, 4) and (3, 3) overlap by more than 0.3 once clipped; level 1: (0, 1) and (1, 2) by less
    expected = [[0, 0, 32, 16], [24, 16, 38, 30], [16, 0, 38, 30]]
    assert found.boxes_xyxy_px.tolist() == expected
    torch.testing.assert_close(found.scores, torch.tensor([9.0, 3.0, 2.0]).sigmoid())
    tall = rpn.propose(preds, [(30, 38)], {**cfg, 'min_bbox_size': 15})[0]
    assert tall.boxes_xyxy_px.tolist() == [expected[0], expected[2]]


def test_invalid_settings_raise():
    with pytest.raises(ValueError, match='use_sigmoid=False'):
        head(loss_cls={'type': 'CrossEntropyLoss'})
    with pytest.raises(ValueError, match='num_classes=3'):
        head(num_classes=3)
    with pytest.raises(ValueError, match='add_gt_as_proposals=False'):
        head(sampler={'type': 'RandomSampler', 'num': 256, 'pos_fraction': 0.5})


def test_several_hidden_layers_have_mmdetections_names():
    names = {name for name, _ in head(num_convs=2).named_parameters()}
    assert {'rpn_conv.0.conv.weight', 'rpn_conv.1.conv.bias', 'rpn_cls.weight', 'rpn_reg.bias'} <= names
    assert len(names) == 8
