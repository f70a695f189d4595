"""DETR and DETR-DC5 against Hugging Face's `DetrForObjectDetection`, and DETR-DC5+'s loss against its criterion."""

import copy
from contextlib import ExitStack
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from torch import Tensor
from transformers import DetrConfig, DetrForObjectDetection
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss

from ddetr.models.detectors import DETR
from ddetr.registry import MODELS
from tests.parity.hf import convert, named_losses, padded_batch, randomize

NUM_CLASSES, WIDTH, ENCODER_LAYERS, DECODER_LAYERS, QUERIES = 7, 64, 2, 3, 20
VARIANTS = {
    'detr_r50_16xb4-500e_coco.py': {},
    'detr-dc5_r50_16xb2-50e_coco.py': {'dilation': True},
}
SHAPES = [(96, 72), (64, 128)]


def build_theirs(overrides: dict) -> DetrForObjectDetection:
    config = DetrConfig(
        **overrides,
        backbone='resnet50',
        num_labels=NUM_CLASSES,
        d_model=WIDTH,
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=DECODER_LAYERS,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        num_queries=QUERIES,
        dropout=0.0,
    )
    model = DetrForObjectDetection(config)
    randomize(model)
    return model.eval()


def build_ours(repo_root: Path, name: str) -> DETR:
    """The variant's own config, made narrow and shallow."""
    config = Config.fromfile(repo_root / 'configs/detr' / name).model
    config.num_queries = QUERIES
    config.backbone.init_cfg = None
    config.neck.out_channels = WIDTH
    config.positional_encoding.num_feats = WIDTH // 2
    config.bbox_head.update(num_classes=NUM_CLASSES, embed_dims=WIDTH)
    for part, layers in ((config.encoder, ENCODER_LAYERS), (config.decoder, DECODER_LAYERS)):
        part.num_layers = layers
        part.layer_cfg.ffn_cfg.update(embed_dims=WIDTH, feedforward_channels=96, ffn_drop=0.0)
        for key in part.layer_cfg.keys() - {'ffn_cfg'}:
            part.layer_cfg[key].update(embed_dims=WIDTH, dropout=0.0)
    return MODELS.build(config).eval()


@pytest.fixture(scope='module', params=VARIANTS)
def pair(request, repo_root):
    """Both models with the same random weights, and a padded batch of two images of different sizes."""
    theirs = build_theirs(VARIANTS[request.param])
    ours = build_ours(repo_root, request.param)
    missing, unexpected = ours.load_state_dict(convert(theirs.state_dict(), 1), strict=False)
    assert not unexpected
    assert all(name.endswith('num_batches_tracked') for name in missing)
    return theirs, ours, padded_batch(NUM_CLASSES, SHAPES)


def their_layers(theirs: DetrForObjectDetection, images: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Hugging Face's logits (N, B, Q, K + 1) and boxes (N, B, Q, 4) of every decoder layer.

    Their `auxiliary_loss=True` feeds each layer's *normalised* state to the next layer and normalises the last
    one twice, unlike the paper's code and unlike their own model without it. So the states of the model without
    it are taken from its layers, and pass its own norm and branches, as its last layer's do.
    """
    states: list[Tensor] = []
    with ExitStack() as hooks:
        for layer in theirs.model.decoder.layers:
            handle = layer.register_forward_hook(lambda module, args, out: states.append(out))
            hooks.callback(handle.remove)
        outputs = theirs(pixel_values=images, pixel_mask=mask)
    hidden = theirs.model.decoder.layernorm(torch.stack(states))
    logits, boxes = theirs.class_labels_classifier(hidden), theirs.bbox_predictor(hidden).sigmoid()
    torch.testing.assert_close(logits[-1], outputs.logits)
    torch.testing.assert_close(boxes[-1], outputs.pred_boxes)
    return logits, boxes


def test_logits_and_boxes_of_every_decoder_layer(pair):
    theirs, ours, (images, samples, mask, _) = pair
    with torch.no_grad():
        logits, boxes = their_layers(theirs, images, mask)
        preds = ours(images, samples, mode='tensor')
    assert len(preds.cls_logits) == DECODER_LAYERS
    torch.testing.assert_close(preds.cls_logits, logits, atol=1e-4, rtol=0)
    torch.testing.assert_close(preds.boxes_cxcywh_norm, boxes, atol=1e-4, rtol=0)


def test_every_loss_term_and_the_gradient_of_every_parameter(pair):
    theirs, ours, (images, samples, mask, labels) = pair
    logits, boxes = their_layers(theirs, images, mask)
    config = copy.copy(theirs.config)
    config.auxiliary_loss = True
    _, terms, _ = theirs.loss_function(logits[-1], labels, 'cpu', boxes[-1], config, logits, boxes)
    expected = named_losses(terms, {'loss_ce': 1.0, 'loss_bbox': 5.0, 'loss_giou': 2.0})
    losses = ours(images, samples, mode='loss')
    assert losses.keys() == expected.keys()
    assert len(losses) == 3 * DECODER_LAYERS
    for name, value in losses.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-5, atol=0, msg=lambda m, n=name: f'{n}: {m}'
        )

    theirs.zero_grad()
    ours.zero_grad()
    sum(expected.values()).backward()
    sum(losses.values()).backward()
    gradients = convert({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}, 1)
    trained = {n: p.grad for n, p in ours.named_parameters() if p.requires_grad}
    frozen = gradients.keys() - trained.keys()  # they freeze the stem of `resnet` backbones, not of timm's
    assert all(name.startswith(('backbone.conv1', 'backbone.layer1')) for name in frozen)
    assert trained.keys() <= gradients.keys()
    # the first layer's queries have no content yet: it averages equal values, whatever its weights are
    idle = 'decoder.layers.0.self_attn.attn.in_proj_weight'
    rounding = 1e-6 * trained[idle.replace('0', '1')].norm()
    assert trained.pop(idle).norm() < rounding
    assert gradients[idle].norm() < rounding
    for name, grad in trained.items():
        error, size = (grad - gradients[name]).norm(), gradients[name].norm()
        assert error <= 1e-3 * size, f'{name}: off by {error:.2e} of {size:.2e}'


def test_dc5_plus_has_the_focal_set_loss(repo_root):
    """Its criterion is that of Deformable DETR: the weights of section 5 on Hugging Face's independent terms."""
    ours = build_ours(repo_root, 'detr-dc5-plus_r50_16xb2-50e_coco.py')
    randomize(ours)
    images, samples, _, labels = padded_batch(NUM_CLASSES, SHAPES)
    with torch.no_grad():
        preds = ours(images, samples, mode='tensor')
        losses = ours(images, samples, mode='loss')
        layers = [
            {'logits': logits, 'pred_boxes': boxes}
            for logits, boxes in zip(preds.cls_logits, preds.boxes_cxcywh_norm, strict=True)
        ]
        matcher = DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2)
        criterion = DeformableDetrImageLoss(matcher, NUM_CLASSES, 0.25, ['labels', 'boxes'])
        terms = criterion({**layers[-1], 'auxiliary_outputs': layers[:-1]}, labels)
    expected = named_losses(terms, {'loss_ce': 2.0, 'loss_bbox': 5.0, 'loss_giou': 2.0})
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-5, atol=0, msg=lambda m, n=name: f'{n}: {m}'
        )
