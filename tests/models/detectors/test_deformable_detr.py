"""What Deformable DETR promises beyond parity: padding, errors, predictions."""

import copy

import pytest
import torch
from torchvision.ops import box_convert, box_iou

from ddetr.models.detectors import deformable_detr
from ddetr.models.layers.deformable_transformer import flatten_levels
from ddetr.structures import separate_groups
from ddetr.utils import ConfigError
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


def test_more_queries_than_tokens_gives_one_clear_error(repo_root):
    detector = build(narrow_deformable_detr(repo_root, 'deformable-detr-refine-twostage', num_queries=2000))
    images, samples, *_ = padded_batch(7, SHAPES)
    tokens = sum(-(-128 // s) * -(-160 // s) for s in (8, 16, 32, 64))
    with pytest.raises(ValueError, match=f'num_queries=2000 exceeds the {tokens} tokens'):
        detector(images, samples, mode='loss')


def test_wrong_levels_raise(repo_root):
    config = narrow_deformable_detr(repo_root, 'deformable-detr')
    config.encoder.layer_cfg.self_attn_cfg.num_levels = 3
    with pytest.raises(ValueError, match='num_levels=3, but num_feature_levels=4'):
        build(config)
    config = narrow_deformable_detr(repo_root, 'deformable-detr')
    config.neck.num_outs = 3
    images, samples, *_ = padded_batch(7, SHAPES)
    with pytest.raises(ValueError, match='returns 3 levels, but num_feature_levels=4'):
        build(config)(images, samples, mode='tensor')


def test_images_without_boxes_are_trained_on(detector):
    images, samples, *_ = padded_batch(7, SHAPES)
    for sample in samples:
        sample.gt_instances = sample.gt_instances[:0]
    losses = detector(images, samples, mode='loss')
    assert all(value.isfinite() for value in losses.values())
    assert losses['loss_bbox'] == losses['loss_iou'] == 0
    assert losses['loss_cls'] > 0


def two_stage(repo_root, **switches):
    config = narrow_deformable_detr(repo_root, 'deformable-detr-refine-twostage')
    config.update(switches)
    model = build(config)
    randomize(model)
    return model


def test_mixed_selection_learns_the_content_of_each_rank(repo_root):
    detector = two_stage(repo_root, mixed_query_selection=True)
    images, samples, *_ = padded_batch(7, SHAPES)
    seen = []
    detector.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    detector(images, samples, mode='loss')
    expected = detector.query_embedding.weight.expand(2, -1, -1)
    torch.testing.assert_close(seen[0].content, expected)
    plain = two_stage(repo_root)
    missing, _ = plain.load_state_dict(detector.state_dict(), strict=False)
    assert not missing
    plain.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    plain(images, samples, mode='tensor')
    torch.testing.assert_close(seen[1].position, seen[0].position)
    torch.testing.assert_close(seen[1].reference_norm, seen[0].reference_norm)
    assert (seen[1].content - seen[0].content).abs().max() > 0.1


def test_class_aware_proposals_are_chosen_and_trained_by_class(repo_root):
    detector = two_stage(repo_root, class_aware_proposals=True)
    images, samples, *_ = padded_batch(7, SHAPES)
    seen = []
    predict_proposals = detector.bbox_head.predict_proposals
    detector.bbox_head.predict_proposals = lambda *args: seen.append(predict_proposals(*args)) or seen[-1]
    preds = detector(images, samples, mode='tensor')
    logits, boxes = seen[0]
    for b in range(2):
        best = logits[b].max(-1).values.argsort(descending=True)[:20]
        torch.testing.assert_close(preds.proposals.cls_logits[b], logits[b][best])
        torch.testing.assert_close(preds.proposals.boxes_cxcywh_norm[b], boxes[b][best])
    assert preds.proposals.by_class
    losses = detector(images, samples, mode='loss')
    for sample in samples:
        sample.gt_instances.labels = (sample.gt_instances.labels + 1) % 7
    assert detector(images, samples, mode='loss')['enc_loss_cls'] != losses['enc_loss_cls']


def test_distinct_proposals_start_from_boxes_that_differ(repo_root):
    """The selection equals a loop over the candidates; if too few are distinct, repeated ones follow."""
    detector = two_stage(repo_root, distinct_proposals=0.3)
    images, samples, *_ = padded_batch(7, SHAPES)
    tokens = sum(-(-128 // s) * -(-160 // s) for s in (8, 16, 32, 64))
    draws = torch.Generator().manual_seed(0)
    logits = torch.randn(2, tokens, 7, generator=draws)
    boxes = torch.rand(2, tokens, 4, generator=draws) * torch.tensor([1, 1, 0.5, 0.5])
    detector.bbox_head.predict_proposals = lambda *_: (logits, boxes)
    seen = []
    detector.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].reference_norm))
    for threshold in (0.3, 0.0):
        detector.distinct_proposals = threshold
        detector(images, samples, mode='tensor')
        for b in range(2):
            candidates = logits[b, :, 0].argsort(descending=True)[:80]
            corners = box_convert(boxes[b, candidates], 'cxcywh', 'xyxy')
            repeated = [bool((box_iou(corners[i : i + 1], corners[:i]) > threshold).any()) for i in range(80)]
            order = sorted(range(80), key=repeated.__getitem__)[:20]  # stable: best first within both kinds
            assert order != list(range(20))  # rank alone would choose others
            assert repeated[order[-1]] == (threshold == 0.0)
            torch.testing.assert_close(seen[-1][b], boxes[b, candidates[order]])


@pytest.mark.parametrize('stages', [1, 2])
def test_one_to_many_queries_are_training_only_and_do_not_affect_others(repo_root, stages):
    variant = 'deformable-detr-refine' + ('-twostage' if stages == 2 else '')
    config = narrow_deformable_detr(repo_root, variant)
    config.num_one2many_queries, config.one2many_repeats = 15, 4
    hybrid = build(config)
    randomize(hybrid)
    state = hybrid.state_dict()
    config.num_one2many_queries = 0
    plain = build(config)
    if 'query_embedding.weight' in state:
        state['query_embedding.weight'] = state['query_embedding.weight'][:20]
    plain.load_state_dict(state)
    images, samples, *_ = padded_batch(7, SHAPES)
    expected = plain(images, samples, mode='loss')
    losses = hybrid(images, samples, mode='loss')
    extra = {name for name in losses if 'o2m_' in name}
    assert extra == {f'{d}o2m_loss_{term}' for d in ('', 'd0.') for term in ('cls', 'bbox', 'iou')}
    assert losses.keys() - extra == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)
    found, same = (m(images, samples, mode='tensor') for m in (hybrid, plain))
    assert found.cls_logits.shape == (2, 2, 20, 7)
    torch.testing.assert_close(found.boxes_cxcywh_norm, same.boxes_cxcywh_norm)


@pytest.mark.parametrize(
    ('switches', 'sentence'),
    [
        (
            {'as_two_stage': False, 'mixed_query_selection': True},
            'model.mixed_query_selection=True.*as_two_stage',
        ),
        (
            {'as_two_stage': False, 'class_aware_proposals': True},
            'model.class_aware_proposals=True.*as_two_stage',
        ),
        (
            {'as_two_stage': False, 'distinct_proposals': 0.7},
            'model.distinct_proposals=0.7.*as_two_stage',
        ),
        ({'distinct_proposals': 70}, 'model.distinct_proposals=70 must be an IoU'),
        ({'as_two_stage': False, 'dn_cfg': {'box_noise_scale': 0.4}}, 'model.dn_cfg=.*as_two_stage'),
        (
            {'with_box_refine': False, 'look_forward_twice': True},
            'model.look_forward_twice=True needs box refinement',
        ),
        (
            {'neck': {'type': 'ChannelMapper', 'in_channels': [1, 2, 3], 'out_channels': 64}},
            r'has \[128, 256, 512\]',
        ),
    ],
)
def test_invalid_combinations_raise_at_once(repo_root, switches, sentence):
    config = narrow_deformable_detr(repo_root, 'deformable-detr-refine-twostage')
    with pytest.raises(ConfigError, match=sentence):
        build({**config, **switches})


def test_more_one_to_many_queries_than_tokens_gives_one_clear_error(repo_root):
    images, samples, *_ = padded_batch(7, SHAPES)
    with pytest.raises(ValueError, match=r'num_queries=2020 exceeds .* \(or num_one2many_queries\)'):
        two_stage(repo_root, num_one2many_queries=2000)(images, samples, mode='loss')


def test_neck_takes_its_input_channels_from_the_backbone(repo_root):
    config = narrow_deformable_detr(repo_root, 'deformable-detr')
    expected = build(config).state_dict()
    del config.neck['in_channels']
    assert {k: v.shape for k, v in build(config).state_dict().items()} == {
        k: v.shape for k, v in expected.items()
    }


def test_tensors_alone_are_enough(detector):
    images, samples, *_ = padded_batch(7, [(128, 160), (128, 160)])  # no padding
    with torch.no_grad():
        alone, expected = detector(images), detector(images, samples, mode='tensor')
    torch.testing.assert_close(alone.boxes_cxcywh_norm, expected.boxes_cxcywh_norm, rtol=0, atol=0)
    with pytest.raises(ValueError, match='needs data_samples'):
        detector(images, mode='predict')


def test_classes_are_reset_in_every_branch(detector):
    model = copy.deepcopy(detector)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    names = model.reset_classes(3)
    assert model.num_classes == 3
    after = model.state_dict()
    assert set(names) == {name for name in after if 'cls_branches' in name}
    assert all(after[name].shape[0] == 3 for name in names)
    shared = len({after[name].data_ptr() for name in names if name.endswith('bias')})
    assert shared == len(
        {v.data_ptr() for n, v in detector.state_dict().items() if 'cls_branches' in n and 'bias' in n}
    )
    assert all(torch.equal(after[name], value) for name, value in before.items() if name not in names)
    images, *_ = padded_batch(7, SHAPES)
    assert model(images).cls_logits.shape[-1] == 3


def test_denoising_queries_are_training_only_and_do_not_affect_others(repo_root):
    dn_cfg = {'group_cfg': {'dynamic': True, 'num_dn_queries': 12}}
    detector = two_stage(repo_root, dn_cfg=dn_cfg, num_one2many_queries=10)
    plain = two_stage(repo_root, num_one2many_queries=10)
    plain.load_state_dict(detector.state_dict(), strict=False)
    images, samples, *_ = padded_batch(7, SHAPES)
    seen = []
    detector.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    losses, expected = (model(images, samples, mode='loss') for model in (detector, plain))
    assert {name for name in losses if 'dn_' in name} == losses.keys() - expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(losses[name], value, rtol=1e-5, atol=1e-6)
    (init,) = seen
    assert [group.name for group in init.groups] == ['', 'o2m_', 'dn_']
    # positions of noised boxes are made as those of proposals are
    position, _ = detector._encode(init.reference_norm, init.content)
    torch.testing.assert_close(init.position, position)
    mask = init.self_attn_mask
    assert torch.equal(mask[:30, :30], separate_groups(init.groups[:2], mask.device))
    assert mask[:30, 30:].all()
    assert not mask[30:, :20].any()
    sum(losses.values()).backward()
    assert detector.dn_query_generator.label_embedding.weight.grad.norm() > 0
    assert detector(images).cls_logits.shape == plain(images).cls_logits.shape
    assert 'dn_query_generator.label_embedding.weight' in detector.reset_classes(3)
