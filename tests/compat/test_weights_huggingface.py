"""Hugging Face's models and ours exchange weights through files on disk and compute the same."""

import pytest
import torch
from mmengine.config import Config
from transformers import (
    DeformableDetrConfig,
    DeformableDetrForObjectDetection,
    DetrConfig,
    DetrForObjectDetection,
    ResNetConfig,
)

from ddetr.registry import MODELS
from ddetr.utils.coco_classes import COCO_IDS
from ddetr.weights import load_weights, read_weights, write_weights
from tests.parity.hf import padded_batch, randomize

NUM_CLASSES, WIDTH, QUERIES = 5, 64, 12
LAYERS = {'encoder': 1, 'decoder': 2}
SMALL = {
    'num_labels': NUM_CLASSES,
    'd_model': WIDTH,
    'encoder_layers': LAYERS['encoder'],
    'decoder_layers': LAYERS['decoder'],
    'encoder_ffn_dim': 48,
    'decoder_ffn_dim': 48,
    'num_queries': QUERIES,
}
DEFORMABLE = 'deformable_detr/deformable-detr{}_r50_16xb2-50e_coco.py'
VARIANTS = {
    DEFORMABLE.format(''): {},
    DEFORMABLE.format('-refine'): {'with_box_refine': True},
    DEFORMABLE.format('-refine-twostage'): {
        'with_box_refine': True,
        'two_stage': True,
        'two_stage_num_proposals': QUERIES,
    },
    DEFORMABLE.format('-single-scale'): {'num_feature_levels': 1},
    DEFORMABLE.format('-single-scale-dc5'): {'num_feature_levels': 1, 'dilation': True},
    'detr/detr_r50_8xb2-150e_coco.py': {},
}
SIZES = [(96, 64), (64, 128)]


def shrink(model: Config) -> Config:
    """Make our model as narrow and shallow as theirs, but for its backbone: timm has ResNets in one width."""
    model.num_queries = QUERIES
    model.backbone.init_cfg = None
    model.neck.out_channels = WIDTH
    model.positional_encoding.num_feats = WIDTH // 2
    model.bbox_head.update(num_classes=NUM_CLASSES, embed_dims=WIDTH)
    for part, layers in LAYERS.items():
        model[part].num_layers = layers
        model[part].layer_cfg.ffn_cfg.update(embed_dims=WIDTH, feedforward_channels=48)
        for key in model[part].layer_cfg.keys() - {'ffn_cfg', 'norm_cfg'}:
            model[part].layer_cfg[key].update(embed_dims=WIDTH)
    return model


@pytest.fixture(params=VARIANTS)
def config(request, repo_root):
    """A variant's name and its small `model`."""
    return request.param, shrink(Config.fromfile(repo_root / 'configs' / request.param).model)


def build_theirs(name: str, **more):
    if name.startswith('detr/'):
        return DetrForObjectDetection(DetrConfig(**{**SMALL, **more}))
    config = DeformableDetrConfig(**{**SMALL, **VARIANTS[name], 'auxiliary_loss': True, **more})
    return DeformableDetrForObjectDetection(config)


def assert_same_outputs(ours, theirs) -> None:
    """Class logits and boxes on a padded batch of two sizes, to 1e-4; of every decoder layer where they give it.

    (Their DETR computes something else than without it when asked for all layers: see tests/parity/test_detr.py.)
    """
    images, samples, mask, labels = padded_batch(NUM_CLASSES, SIZES)
    with torch.no_grad():
        # they give the layers before the last only together with a loss
        expected = theirs.eval()(pixel_values=images, pixel_mask=mask, labels=labels)
        preds = ours.eval()(images, samples, mode='tensor')
    layers = [
        *(expected.auxiliary_outputs or []),
        {'logits': expected.logits, 'pred_boxes': expected.pred_boxes},
    ]
    assert len(layers) == (LAYERS['decoder'] if theirs.config.auxiliary_loss else 1)
    for n, layer in enumerate(reversed(layers), 1):
        assert layer['logits'].std() > 0.05  # a model that says something
        torch.testing.assert_close(preds.cls_logits[-n], layer['logits'], atol=1e-4, rtol=0)
        torch.testing.assert_close(preds.boxes_cxcywh_norm[-n], layer['pred_boxes'], atol=1e-4, rtol=0)


def test_their_saved_model_computes_the_same_in_ours(config, tmp_path):
    name, model_cfg = config
    theirs = build_theirs(name)
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    ours = MODELS.build(model_cfg)
    report = load_weights(ours, tmp_path)
    assert report.missing == report.unexpected == ()
    assert_same_outputs(ours, theirs)


def test_our_checkpoint_computes_the_same_in_theirs(config, tmp_path):
    name, model_cfg = config
    ours = MODELS.build(model_cfg)
    randomize(ours)
    torch.save({'state_dict': ours.state_dict(), 'meta': {}}, tmp_path / 'epoch_1.pth')
    write_weights(tmp_path / 'hf', read_weights(tmp_path / 'epoch_1.pth'), 'hf', model_cfg)
    kind = DetrForObjectDetection if name.startswith('detr/') else DeformableDetrForObjectDetection
    theirs, info = kind.from_pretrained(tmp_path / 'hf', output_loading_info=True)
    assert not info['missing_keys']
    assert not info['unexpected_keys']
    theirs.config.auxiliary_loss = not name.startswith('detr/')  # a choice of the caller, to see all layers
    assert_same_outputs(ours, theirs)


@pytest.mark.parametrize('version_5', [False, True])
def test_narrow_models_go_through_hugging_faces_own_resnet(version_5, repo_root, tmp_path):
    """A backbone of another width than timm's, in both directions, under both versions' names."""
    resnet = ResNetConfig(
        embedding_size=8,
        hidden_sizes=[32, 64, 128, 256],
        depths=[3, 4, 6, 3],
        layer_type='bottleneck',
        out_features=['stage2', 'stage3', 'stage4'],
    )
    theirs = build_theirs(DEFORMABLE.format('-refine'), use_timm_backbone=False, backbone_config=resnet)
    randomize(theirs)
    if version_5:
        torch.save(theirs.state_dict(), tmp_path / 'in.pth')
    else:
        theirs.save_pretrained(tmp_path / 'in.pth')
    model = shrink(Config.fromfile(repo_root / 'configs' / DEFORMABLE.format('-refine')).model)
    model.backbone.base_channels = 8
    model.neck.in_channels = [64, 128, 256]
    ours = MODELS.build(model)
    load_weights(ours, tmp_path / 'in.pth')
    assert_same_outputs(ours, theirs)
    write_weights(tmp_path / 'out', read_weights(tmp_path / 'in.pth'), 'hf', model)
    again = DeformableDetrForObjectDetection.from_pretrained(tmp_path / 'out')
    again.config.auxiliary_loss = True
    assert_same_outputs(ours, again)


@pytest.mark.parametrize('name', [DEFORMABLE.format('-refine-twostage'), 'detr/detr_r50_8xb2-150e_coco.py'])
def test_published_models_91_classes_become_cocos_80(name, repo_root, tmp_path):
    """Class logits are those of the category ids; the proposals are rated by their row 0, which is no category."""
    theirs = build_theirs(name, num_labels=91)
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    model_cfg = shrink(Config.fromfile(repo_root / 'configs' / name).model)
    model_cfg.bbox_head.num_classes = 80
    ours = MODELS.build(model_cfg).eval()
    load_weights(ours, tmp_path)
    images, samples, mask, _ = padded_batch(NUM_CLASSES, SIZES)
    with torch.no_grad():
        expected = theirs.eval()(pixel_values=images, pixel_mask=mask)
        preds = ours(images, samples, mode='tensor')
    rows = list(COCO_IDS) + ([91] if name.startswith('detr/') else [])
    torch.testing.assert_close(preds.cls_logits[-1], expected.logits[..., rows], atol=1e-4, rtol=0)
    torch.testing.assert_close(preds.boxes_cxcywh_norm[-1], expected.pred_boxes, atol=1e-4, rtol=0)

    torch.save({'state_dict': ours.state_dict()}, tmp_path / 'ours.pth')
    write_weights(tmp_path / 'back', read_weights(tmp_path / 'ours.pth'), 'hf', model_cfg)
    with torch.no_grad():
        again = type(theirs).from_pretrained(tmp_path / 'back').eval()(pixel_values=images, pixel_mask=mask)
    torch.testing.assert_close(again.logits[..., rows], preds.cls_logits[-1], atol=1e-4, rtol=0)
    torch.testing.assert_close(again.pred_boxes, preds.boxes_cxcywh_norm[-1], atol=1e-4, rtol=0)
    never = [i for i in range(91) if i not in COCO_IDS]
    assert again.logits[..., never].sigmoid().max() == 0
