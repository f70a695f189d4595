"""Faster R-CNN against torchvision's, an independent implementation, with the same random weights."""

import copy
import re
from typing import NamedTuple

import pytest
import torch
from mmengine.config import Config
from mmengine.structures import InstanceData
from torch import Tensor, nn
from torchvision.models.detection import fasterrcnn_resnet50_fpn

from ddetr.registry import MODELS
from ddetr.structures import DetDataSample

# (h, w), the shorter side torchvision's `min_size`, so that nothing is resized; no multiples of the coarsest stride, 64
SIZES = {'one_size': [(160, 256), (160, 256)], 'padded': [(224, 160), (160, 224)]}
NUM_CLASSES = 90

RENAMED = [
    (r'backbone\.body\.', 'backbone.'),
    (r'backbone\.fpn\.inner_blocks\.(\d)\.0\.', r'neck.lateral_convs.\1.conv.'),
    (r'backbone\.fpn\.layer_blocks\.(\d)\.0\.', r'neck.fpn_convs.\1.conv.'),
    (r'rpn\.head\.conv\.0\.0\.', 'rpn_head.rpn_conv.'),
    (r'rpn\.head\.cls_logits\.', 'rpn_head.rpn_cls.'),
    (r'rpn\.head\.bbox_pred\.', 'rpn_head.rpn_reg.'),
    (r'roi_heads\.box_head\.fc6\.', 'roi_head.bbox_head.shared_fcs.0.'),
    (r'roi_heads\.box_head\.fc7\.', 'roi_head.bbox_head.shared_fcs.1.'),
    (r'roi_heads\.box_predictor\.cls_score\.', 'roi_head.bbox_head.fc_cls.'),
    (r'roi_heads\.box_predictor\.bbox_pred\.', 'roi_head.bbox_head.fc_reg.'),
]


class Pair(NamedTuple):
    ours: nn.Module
    theirs: nn.Module


@pytest.fixture(scope='module')
def pair(repo_root) -> Pair:
    """Both models with weights that spread proposals, classes and boxes, unlike the initial weights."""
    torch.manual_seed(0)
    theirs = fasterrcnn_resnet50_fpn(
        weights=None, weights_backbone=None, num_classes=NUM_CLASSES + 1, min_size=160, max_size=256
    )
    with torch.no_grad():
        for module in theirs.backbone.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.5, 1.5)
                module.weight.uniform_(0.3, 0.7)
        for name, factor in {'cls_logits': 20, 'bbox_pred': 20}.items():
            getattr(theirs.rpn.head, name).weight.mul_(factor)
        theirs.roi_heads.box_predictor.cls_score.weight.mul_(50)
        theirs.roi_heads.box_predictor.bbox_pred.weight.mul_(10)
    cfg = Config.fromfile(repo_root / 'configs/faster_rcnn/faster-rcnn_r50_fpn_torchvision_1x_coco.py').model
    cfg.backbone.update(init_cfg=None, frozen_stages=-1)
    cfg.roi_head.bbox_head.num_classes = NUM_CLASSES
    ours = MODELS.build(cfg)
    ours.load_state_dict(converted(theirs.state_dict()), strict=True)
    return Pair(ours, theirs)


def converted(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """torchvision's parameters under our names; its class 0 is background, ours the last."""
    result = {}
    for key, value in state.items():
        for pattern, name in RENAMED:
            key = re.sub(pattern, name, key)
        if '.fc_cls.' in key:
            value = value.roll(-1, dims=0)
        if '.fc_reg.' in key:
            value = value[4:]
        result[key] = value
    return result


def batch(sizes: list[tuple[int, int]]) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """uint8 BGR images and a few boxes each, labels from 0."""
    generator = torch.Generator().manual_seed(1)
    images, targets = [], []
    for h, w in sizes:
        images.append(torch.randint(0, 256, (3, h, w), generator=generator, dtype=torch.uint8))
        corner = torch.rand(5, 2, generator=generator) * torch.tensor([w, h]) * 0.6
        extent = (0.05 + 0.35 * torch.rand(5, 2, generator=generator)) * torch.tensor([w, h])
        labels = torch.randint(0, NUM_CLASSES, (5,), generator=generator)
        targets.append({'boxes': torch.cat([corner, corner + extent], 1), 'labels': labels})
    return images, targets


def for_us(model: nn.Module, images: list[Tensor], targets: list[dict[str, Tensor]]) -> dict:
    """Through the data preprocessor, with samples as the pipeline packs them."""
    samples = []
    for image, target in zip(images, targets, strict=True):
        sample = DetDataSample(metainfo={'img_shape': tuple(image.shape[1:]), 'scale_factor': (1.0, 1.0)})
        sample.gt_instances = InstanceData(bboxes=target['boxes'], labels=target['labels'])
        samples.append(sample)
    return model.data_preprocessor({'inputs': images, 'data_samples': samples}, training=True)


def for_them(images: list[Tensor], targets: list[dict[str, Tensor]]) -> tuple[list[Tensor], list[dict]]:
    """RGB in 0..1, labels from 1."""
    return (
        [image.flip(0).float() / 255 for image in images],
        [{'boxes': t['boxes'], 'labels': t['labels'] + 1} for t in targets],
    )


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def assert_same_set(ours: Tensor, theirs: Tensor) -> None:
    """The same rows within 1e-4, in any order: scores that are equal up to rounding may change places."""
    assert len(ours) == len(theirs)
    distance = torch.cdist(ours.double(), theirs.double(), p=torch.inf)
    assert max(distance.min(0).values.max(), distance.min(1).values.max()) < 1e-4


@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
def test_proposals_and_detections_equal_torchvision(pair, sizes, double):
    images, targets = batch(sizes)
    pair = Pair(*(copy.deepcopy(model).double() for model in pair))
    kept = {}
    hook = pair.theirs.rpn.register_forward_hook(lambda m, args, out: kept.update(proposals=out[0]))
    with torch.no_grad():
        expected = pair.theirs.eval()(for_them(images, targets)[0])
        ours = pair.ours.eval()
        data = for_us(ours, images, targets)
        feats = ours.neck(ours.backbone(data['inputs']))
        anchors = ours.rpn_head(feats, data['inputs'].shape[-2:])
        proposals = ours.rpn_head.propose(
            anchors, [s.img_shape for s in data['data_samples']], ours.test_proposal_cfg
        )
        results = ours(**data, mode='predict')
    hook.remove()
    for mine, theirs in zip(proposals, kept['proposals'], strict=True):
        assert len(mine.boxes_xyxy_px) > 100
        assert_same_set(mine.boxes_xyxy_px, theirs)
    for result, theirs in zip(results, expected, strict=True):
        mine = result.pred_instances
        assert len(mine) >= 20
        assert_close(mine.scores, theirs['scores'])
        assert_same_set(
            torch.cat([mine.bboxes, mine.labels[:, None], mine.scores[:, None]], dim=1),
            torch.cat([theirs['boxes'], theirs['labels'][:, None] - 1, theirs['scores'][:, None]], dim=1),
        )


@pytest.mark.parametrize('sizes', SIZES.values(), ids=SIZES)
def test_losses_and_gradients_equal_torchvision(pair, sizes):
    images, targets = batch(sizes)
    theirs = pair.theirs.train()
    theirs.backbone.eval()  # batch norms as ours, which `norm_eval` keeps in eval mode
    ours = pair.ours.train()
    # both draw the same samples from one seed: they ask for permutations of the same lengths in the same order
    hooks = [
        rpn.register_forward_pre_hook(lambda module, args: torch.manual_seed(7) and None)
        for rpn in (theirs.rpn, ours.rpn_head)
    ]
    data = for_us(ours, images, targets)
    # the two normalise with different rounding, and ReLU's kinks amplify that in the gradients: the same input
    hooks.append(theirs.backbone.register_forward_pre_hook(lambda module, args: (data['inputs'],)))
    expected = theirs(*for_them(images, targets))
    losses = ours(**data, mode='loss')
    for hook in hooks:
        hook.remove()
    names = {
        'loss_rpn_cls': 'loss_objectness',
        'loss_rpn_bbox': 'loss_rpn_box_reg',
        'loss_cls': 'loss_classifier',
        'loss_bbox': 'loss_box_reg',
    }
    for mine, name in names.items():
        assert expected[name] > 0.01
        assert_close(losses[mine], expected[name])
    for model, loss in ((theirs, expected), (ours, {name: losses[name] for name in names})):
        model.zero_grad()
        sum(loss.values()).backward()
    wanted = converted({name: p.grad for name, p in theirs.named_parameters()})
    for name, parameter in ours.named_parameters():
        scale = wanted[name].abs().max()
        assert (parameter.grad - wanted[name]).abs().max() < 1e-3 * scale, name
