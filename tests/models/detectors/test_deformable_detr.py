"""What Deformable DETR promises beyond parity: padding, errors, predictions."""

import pytest
import torch

from ddetr.models.detectors import deformable_detr
from ddetr.models.layers.deformable_transformer import flatten_levels
from tests.models.helpers import DEFORMABLE_VARIANTS, build, narrow_deformable_detr
from tests.parity.hf import padded_batch, randomize

SHAPES = [(128, 96), (80, 160)]


@pytest.fixture(scope='module', params=DEFORMABLE_VARIANTS)
def detector(request, repo_root):
    model = build(narrow_deformable_detr(repo_root, request.param))
    randomize(model)
    return model


def all_values(detector, images, samples):
    """Every prediction and every loss, by name."""
    with torch.no_grad():
        preds = detector(images, samples, mode='tensor')
        losses = detector(images, samples, mode='loss')
    values = {'logits': preds.cls_logits, 'boxes': preds.boxes_cxcywh_norm, **losses}
    if preds.proposals is not None:
        values |= {'enc_logits': preds.proposals.cls_logits, 'enc_boxes': preds.proposals.boxes_cxcywh_norm}
    return values


def test_nothing_under_the_padding_reaches_a_result(detector, monkeypatch):
    images, samples, *_ = padded_batch(7, SHAPES)
    before = all_values(detector, images, samples)

    def poisoned(*args):
        flat = flatten_levels(*args)
        assert flat.pad_mask.any(1).all()  # both images are padded, on different sides
        return flat._replace(tokens=flat.tokens.masked_fill(flat.pad_mask[..., None], 1e6))

    monkeypatch.setattr(deformable_detr, 'flatten_levels', poisoned)
    after = all_values(detector, images, samples)
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=0, atol=0, msg=lambda m, n=name: f'{n}: {m}')


def test_gradients_do_not_come_from_padding(detector, monkeypatch):
    images, samples, *_ = padded_batch(7, SHAPES)
    seen = {}

    def watched(*args):
        flat = flatten_levels(*args)
        flat.tokens.retain_grad()
        seen['flat'] = flat
        return flat

    monkeypatch.setattr(deformable_detr, 'flatten_levels', watched)
    sum(detector(images, samples, mode='loss').values()).backward()
    flat = seen['flat']
    assert flat.tokens.grad[flat.pad_mask].abs().max() == 0
    assert flat.tokens.grad[~flat.pad_mask].abs().max() > 0


def test_predictions_lie_inside_the_original_image_best_first(detector):
    images, samples, *_ = padded_batch(7, SHAPES)
    for sample in samples:  # as if the images had been enlarged by 2 in width and 4 in height
        sample.set_metainfo({'scale_factor': (2.0, 4.0)})
    for sample, (height, width) in zip(detector(images, samples, mode='predict'), SHAPES, strict=True):
        found = sample.pred_instances
        assert len(found) == 100
        assert (found.scores.diff() <= 0).all()
        assert found.bboxes.min() >= 0
        assert (found.bboxes <= torch.tensor([width / 2, height / 4] * 2) + 1e-4).all()


def test_more_queries_than_tokens_is_one_clear_sentence(repo_root):
    detector = build(narrow_deformable_detr(repo_root, 'deformable-detr-refine-twostage', num_queries=2000))
    images, samples, *_ = padded_batch(7, SHAPES)
    tokens = sum(-(-128 // s) * -(-160 // s) for s in (8, 16, 32, 64))
    with pytest.raises(ValueError, match=f'num_queries=2000 exceeds the {tokens} tokens'):
        detector(images, samples, mode='loss')


def test_levels_that_do_not_fit_are_named(repo_root):
    config = narrow_deformable_detr(repo_root, 'deformable-detr')
    config.encoder.layer_cfg.self_attn_cfg.num_levels = 3
    with pytest.raises(ValueError, match='num_levels=3, but num_feature_levels=4'):
        build(config)
    config = narrow_deformable_detr(repo_root, 'deformable-detr')
    config.neck.num_outs = 3
    images, samples, *_ = padded_batch(7, SHAPES)
    with pytest.raises(ValueError, match='gives 3 levels, but num_feature_levels=4'):
        build(config)(images, samples, mode='tensor')


def test_images_without_boxes_are_trained_on(detector):
    images, samples, *_ = padded_batch(7, SHAPES)
    for sample in samples:
        sample.gt_instances = sample.gt_instances[:0]
    losses = detector(images, samples, mode='loss')
    assert all(value.isfinite() for value in losses.values())
    assert losses['loss_bbox'] == losses['loss_iou'] == 0
    assert losses['loss_cls'] > 0
