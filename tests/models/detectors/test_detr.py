"""What DETR promises beyond parity: sizes, names, padding, errors."""

import json

import pytest
import torch
from mmengine.config import Config

from ddetr.registry import MODELS
from tests.models.helpers import DETR_CONFIGS, build, narrow_detr
from tests.parity.hf import padded_batch, randomize

SHAPES = [(128, 96), (80, 160)]


@pytest.fixture(scope='module', params=[name for name in DETR_CONFIGS if '64xb1' not in name])
def detector(request, repo_root):
    model = build(narrow_detr(repo_root, request.param))
    randomize(model)
    return model


@pytest.mark.parametrize('name', DETR_CONFIGS)
def test_parameters_of_the_table(repo_root, name):
    config = Config.fromfile(repo_root / f'configs/detr/{name}.py').model
    config.backbone.init_cfg = None
    with torch.device('meta'):
        detector = MODELS.build(config)
    trained = sum(p.numel() for p in detector.parameters() if p.requires_grad)
    assert round(trained / 1e6) == 41
    assert detector.query_embedding.num_embeddings == (300 if 'plus' in name else 100)


def test_names_and_shapes_are_those_of_mmdetection(repo_root, checkpoint_lists):
    name = 'detr_r50_8xb2-150e_coco'
    config = Config.fromfile(repo_root / f'configs/detr/{name}.py').model
    config.backbone.init_cfg = None
    with torch.device('meta'):
        state = MODELS.build(config).state_dict()
    theirs = json.loads((checkpoint_lists / f'mmdet_{name}.json').read_text())
    assert {key: list(value.shape) for key, value in state.items()} == theirs


def all_values(detector, images, samples):
    """Every raw prediction, loss and detection, by name."""
    with torch.no_grad():
        preds = detector(images, samples, mode='tensor')
        losses = detector(images, samples, mode='loss')
        found = [s.pred_instances.bboxes.clone() for s in detector(images, samples, mode='predict')]
    return {
        'logits': preds.cls_logits,
        'boxes': preds.boxes_cxcywh_norm,
        'found': torch.stack(found),
        **losses,
    }


def test_nothing_under_the_padding_reaches_a_result(detector, monkeypatch):
    images, samples, *_ = padded_batch(7, SHAPES)
    before = all_values(detector, images, samples)
    flatten = type(detector).flatten

    def poisoned(self, feats, pad_mask):
        flat = flatten(self, feats, pad_mask)
        assert flat.pad_mask.any(1).all()  # both images are padded, on different sides
        return flat._replace(tokens=flat.tokens.masked_fill(flat.pad_mask[..., None], 1e6))

    monkeypatch.setattr(type(detector), 'flatten', poisoned)
    after = all_values(detector, images, samples)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, msg=lambda m, n=name: f'{n}: {m}')


def test_gradients_do_not_come_from_padding(detector, monkeypatch):
    images, samples, *_ = padded_batch(7, SHAPES)
    flatten, seen = type(detector).flatten, {}

    def watched(self, feats, pad_mask):
        flat = flatten(self, feats, pad_mask)
        flat.tokens.retain_grad()
        seen['flat'] = flat
        return flat

    monkeypatch.setattr(type(detector), 'flatten', watched)
    sum(detector(images, samples, mode='loss').values()).backward()
    flat = seen['flat']
    assert flat.tokens.grad[flat.pad_mask].abs().max() == 0
    assert flat.tokens.grad[~flat.pad_mask].abs().max() > 0


def test_images_without_boxes_are_trained_on(detector):
    images, samples, *_ = padded_batch(7, SHAPES)
    for sample in samples:
        sample.gt_instances = sample.gt_instances[:0]
    losses = detector(images, samples, mode='loss')
    assert all(value.isfinite() for value in losses.values())
    assert losses['loss_bbox'] == losses['loss_iou'] == 0
    assert losses['loss_cls'] > 0


def test_dc5_doubles_the_resolution_and_nothing_else(repo_root):
    images = torch.zeros(1, 3, 128, 192)
    plain, dc5 = (build(narrow_detr(repo_root, name)) for name in (DETR_CONFIGS[0], DETR_CONFIGS[1]))
    assert plain.neck(plain.backbone(images))[0].shape == (1, 64, 4, 6)
    assert dc5.neck(dc5.backbone(images))[0].shape == (1, 64, 8, 12)
    shapes = [{k: v.shape for k, v in model.state_dict().items()} for model in (plain, dc5)]
    assert shapes[0] == shapes[1]


def test_more_than_one_feature_map_raises(repo_root):
    config = narrow_detr(repo_root, DETR_CONFIGS[0])
    config.neck.num_outs = 2
    images, samples, *_ = padded_batch(7, SHAPES)
    with pytest.raises(ValueError, match=r'but the neck returns 2: set neck\.num_outs=1'):
        build(config)(images, samples, mode='tensor')


def test_only_layer_norms_are_accepted(repo_root):
    config = narrow_detr(repo_root, DETR_CONFIGS[0])
    config.decoder.post_norm_cfg = {'type': 'BN'}
    with pytest.raises(ValueError, match='layer norms'):
        build(config)
