"""DINO: the noise of its denoising queries, who sees whom, the losses of given noise, and errors."""

import pytest
import torch
from mmengine.config import Config
from torchvision.ops import box_convert

from ddetr.models.detectors.dino_denoising import ContrastiveDenoising, DenoisingQueries, denoising_mask
from ddetr.registry import MODELS
from ddetr.structures import ImageBatch
from ddetr.utils import ConfigError
from ddetr.weights import load_weights, read_weights, write_weights
from tests.models.helpers import build, narrow
from tests.models.set_prediction.test_criterion import independent
from tests.parity.hf import padded_batch, randomize

SHAPES = [(128, 96), (80, 160)]  # with 3 and 4 objects of `padded_batch`


@pytest.fixture(scope='module')
def detector(repo_root):
    model = build(narrow(repo_root, 'dino/dino-4scale_r50_8xb2-12e_coco.py'))
    randomize(model)
    return model


def batch():
    images, samples, *_ = padded_batch(7, SHAPES)
    mask = torch.ones(2, *images.shape[-2:], dtype=torch.bool)
    for row, (height, width) in zip(mask, SHAPES, strict=True):
        row[:height, :width] = False
    return ImageBatch(images, mask), samples


def noise(labels, boxes, counts, num_groups):
    """Denoising queries of given labels and boxes: the same in all groups, negatives half as large."""
    most = max(counts)
    all_labels = torch.full((2, num_groups, 2, most), -1)
    all_boxes = torch.full((2, num_groups, 2, most, 4), 0.5)
    for b, count in enumerate(counts):
        all_labels[b, :, :, :count] = labels[b]
        all_boxes[b, :, 0, :count] = boxes[b]
        all_boxes[b, :, 1, :count] = boxes[b] * torch.tensor([1, 1, 0.5, 0.5])
    return DenoisingQueries(all_labels.flatten(1), all_boxes.flatten(1, 3), num_groups)


def test_losses_of_given_noise(detector):
    """Slots are positives and negatives of each group in turn; negatives and empty slots are background."""
    images, samples = batch()
    boxes = [
        box_convert(s.gt_instances.bboxes, 'xyxy', 'cxcywh') / torch.tensor([*s.img_shape[::-1]] * 2)
        for s in samples
    ]
    given = noise([s.gt_instances.labels for s in samples], boxes, [3, 4], num_groups=2)
    with torch.no_grad():
        losses = detector.loss(images, samples, given)
        preds = detector.predict_sets(images, given)
    pairs = [[(g * 8 + t, t) for g in range(2) for t in range(count)] for count in (3, 4)]
    for n, prefix in ((1, ''), (0, 'd0.')):
        logits, boxes = preds.cls_logits[n][:, 20:], preds.boxes_cxcywh_norm[n][:, 20:]
        expected = independent(logits, boxes, samples, pairs)
        expected['loss_cls'] /= 2  # its weight is 1
        for name, value in expected.items():
            torch.testing.assert_close(losses[f'{prefix}dn_{name}'], value, rtol=1e-5, atol=1e-6)
    assert losses.keys() == {
        f'{prefix}loss_{term}'
        for prefix in ('', 'd0.', 'dn_', 'd0.dn_', 'enc_')
        for term in ('cls', 'bbox', 'iou')
    }


def test_denoising_does_not_reach_the_matching_queries_nor_other_groups(detector):
    images, _ = batch()
    boxes = [torch.rand(count, 4) * 0.3 + 0.2 for count in (3, 4)]
    labels = [torch.arange(count) for count in (3, 4)]
    with torch.no_grad():
        plain = detector(images.images, mode='tensor', pad_mask=images.pad_mask)
        preds = detector.predict_sets(images, given := noise(labels, boxes, [3, 4], 3))
        torch.testing.assert_close(preds.cls_logits[:, :, :20], plain.cls_logits)
        # groups of the same content are decoded the same; changing one changes no other
        first, second, third = preds.cls_logits[:, :, 20:].split(8, 2)
        torch.testing.assert_close(first, third)
        changed = given.labels.clone()
        changed[:, 8:16] = (changed[:, 8:16] + 1) % 7
        again = detector.predict_sets(images, given._replace(labels=changed)).cls_logits[:, :, 20:]
        torch.testing.assert_close(again[:, :, :8], first)
        torch.testing.assert_close(again[:, :, 16:], third)
        assert (again[:, :, 8:16] - second).abs().max() > 1e-3


def test_matching_queries_are_visible_to_all_queries():
    mask = denoising_mask(
        3, DenoisingQueries(torch.zeros(1, 4), torch.zeros(1, 4, 4), 2), torch.device('cpu')
    )
    assert not mask[:, :3].any()
    assert mask[:3, 3:].all()
    assert mask[3:, 3:].tolist() == [[False, False, True, True]] * 2 + [[True, True, False, False]] * 2


def test_noise_follows_the_paper():
    generator = ContrastiveDenoising(7, 8, 0.5, 0.6, {'dynamic': False, 'num_groups': 4000})
    _, samples = batch()
    drawn = generator(samples)
    assert drawn.num_groups == 4000
    labels = drawn.labels.view(2, 4000, 2, 4)
    boxes = box_convert(drawn.boxes_cxcywh_norm, 'cxcywh', 'xyxy').view(2, 4000, 2, 4, 4)
    assert (labels[0, :, :, 3] == -1).all()  # the first image has one object less
    assert (drawn.boxes_cxcywh_norm.view(2, 4000, 2, 4, 4)[0, :, :, 3] == 0.5).all()
    for b, sample in enumerate(samples):
        count = len(sample.gt_instances)
        kept = (labels[b, :, :, :count] == sample.gt_instances.labels).float().mean()
        assert kept == pytest.approx(0.75 + 0.25 / 7, abs=0.01)  # a quarter is drawn anew, of 7 classes
        true = sample.gt_instances.bboxes / torch.tensor([*sample.img_shape[::-1]] * 2)
        half = (true[:, 2:] - true[:, :2]).repeat(1, 2) / 2
        inside = (true > 2 * 0.6 * half) & (true < 1 - 2 * 0.6 * half)  # never clipped
        moved = ((boxes[b, :, :, :count] - true) / half / 0.6).abs()[..., inside]
        if inside.any():
            assert moved[:, 0].max() < 1 + 1e-4
            assert 1 - 1e-4 < moved[:, 1].min() < moved[:, 1].max() < 2 + 1e-4
            assert moved[:, 0].mean() == pytest.approx(0.5, abs=0.02)
    assert boxes.min() >= 0
    assert boxes.max() <= 1


def test_number_of_groups_follows_the_largest_image():
    _, samples = batch()
    generator = ContrastiveDenoising(7, 8)
    assert generator(samples).num_groups == 100 // 4
    assert generator(samples).labels.shape == (2, 25 * 8)
    few = ContrastiveDenoising(7, 8, group_cfg={'dynamic': True, 'num_dn_queries': 3})
    assert few(samples).num_groups == 1


def test_batches_without_objects_train_all_parameters(detector):
    images, samples = batch()
    for sample in samples:
        sample.gt_instances = sample.gt_instances[:0]
    detector.zero_grad()
    losses = detector.loss(images, samples)
    assert losses['dn_loss_cls'] == losses['dn_loss_bbox'] == 0
    sum(losses.values()).backward()
    assert (
        detector.dn_query_generator.label_embedding.weight.grad is not None
    )  # or several processes would wait
    assert losses['loss_cls'].isfinite()


def test_classes_are_reset_with_the_label_embedding(repo_root):
    model = build(narrow(repo_root, 'dino/dino-4scale_r50_8xb2-12e_coco.py'))
    names = model.reset_classes(3)
    state = model.state_dict()
    assert 'dn_query_generator.label_embedding.weight' in names
    assert {state[name].shape[0] for name in names} == {3}
    images, samples = batch()
    for sample in samples:
        sample.gt_instances.labels %= 3
    assert all(value.isfinite() for value in model.loss(images, samples).values())


@pytest.mark.parametrize(
    ('keys', 'sentence'),
    [
        ({'as_two_stage': False}, 'model.as_two_stage=False is not supported by DINO'),
        ({'with_box_refine': False}, 'model.with_box_refine=False'),
        ({'dn_cfg': {'group_cfg': {'dynamic': False}}}, 'dynamic=False needs num_groups'),
        ({'dn_cfg': {'group_cfg': {'num_queries': 3}}}, "no key 'num_queries'"),
        ({'dn_cfg': {'box_noise_scale': -1.0}}, 'noise scales must not be negative'),
    ],
)
def test_invalid_combinations_raise_at_once(repo_root, keys, sentence):
    config = narrow(repo_root, 'dino/dino-4scale_r50_8xb2-12e_coco.py')
    config.dn_cfg = None
    with pytest.raises(ConfigError, match=sentence):
        build({**config, **keys})


def test_more_queries_than_tokens_gives_one_clear_error(repo_root):
    model = build(narrow(repo_root, 'dino/dino-4scale_r50_8xb2-12e_coco.py', num_queries=900))
    images, samples = batch()
    with pytest.raises(ValueError, match='num_queries=900 exceeds the'):
        model.loss(images, samples)


def test_names_equal_mmdetection(repo_root, tmp_path):
    """Its source, written out: detectors/dino.py, layers/transformer/dino_layers.py, dense_heads/dino_head.py."""
    both = ('weight', 'bias')
    attention = ('sampling_offsets', 'attention_weights', 'value_proj', 'output_proj')
    names = {'level_embed', 'query_embedding.weight', 'dn_query_generator.label_embedding.weight'}
    names |= {f'memory_trans_{part}.{p}' for part in ('fc', 'norm') for p in both}
    for level in ('convs.0', 'convs.1', 'convs.2', 'extra_convs.0'):
        names |= {f'neck.{level}.conv.weight', *(f'neck.{level}.gn.{p}' for p in both)}
    for i in range(6):
        encoder, decoder = f'encoder.layers.{i}', f'decoder.layers.{i}'
        names |= {f'{encoder}.self_attn.{part}.{p}' for part in attention for p in both}
        names |= {f'{decoder}.cross_attn.{part}.{p}' for part in attention for p in both}
        names |= {f'{decoder}.self_attn.attn.{part}' for part in ('in_proj_weight', 'in_proj_bias')}
        names |= {f'{decoder}.self_attn.attn.out_proj.{p}' for p in both}
        for layer, norms in ((encoder, 2), (decoder, 3)):
            names |= {f'{layer}.ffn.layers.{part}.{p}' for part in ('0.0', '1') for p in both}
            names |= {f'{layer}.norms.{n}.{p}' for n in range(norms) for p in both}
    names |= {
        f'decoder.{part}.{p}'
        for part in ('ref_point_head.layers.0', 'ref_point_head.layers.1', 'norm')
        for p in both
    }
    for i in range(7):
        names |= {f'bbox_head.cls_branches.{i}.{p}' for p in both}
        names |= {f'bbox_head.reg_branches.{i}.{n}.{p}' for n in (0, 2, 4) for p in both}

    config = Config.fromfile(repo_root / 'configs/dino/dino-4scale_r50_8xb2-12e_coco.py').model
    config.backbone.init_cfg = None
    model = MODELS.build(config)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'ours.pth')
    write_weights(tmp_path / 'theirs.pth', read_weights(tmp_path / 'ours.pth'), 'mmdet')
    theirs = torch.load(tmp_path / 'theirs.pth', weights_only=True)['state_dict']
    assert {name for name in theirs if not name.startswith('backbone.')} == names
    assert theirs['dn_query_generator.label_embedding.weight'].shape == (80, 256)
    report = load_weights(model, tmp_path / 'theirs.pth')
    assert report.missing == report.unexpected == ()
    assert str(report.layout) == 'DINO (ResNet-50), 4 feature levels, 900 queries, 80 classes'
