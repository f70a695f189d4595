"""The five Deformable DETR variants against Hugging Face's `DeformableDetrForObjectDetection`."""

from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from transformers import DeformableDetrConfig, DeformableDetrForObjectDetection
from transformers.loss.loss_deformable_detr import DeformableDetrHungarianMatcher, DeformableDetrImageLoss

from ddetr.models.detectors import DeformableDETR
from ddetr.registry import MODELS
from tests.parity.hf import convert, named_losses, padded_batch, randomize

NUM_CLASSES, WIDTH, ENCODER_LAYERS, DECODER_LAYERS, QUERIES = 7, 64, 2, 3, 20
VARIANTS = {
    'deformable-detr': {},
    'deformable-detr-refine': {'with_box_refine': True},
    'deformable-detr-refine-twostage': {'with_box_refine': True, 'two_stage': True},
    'deformable-detr-single-scale': {'num_feature_levels': 1},
    'deformable-detr-single-scale-dc5': {'num_feature_levels': 1, 'dilation': True},
}


def build_theirs(overrides: dict) -> DeformableDetrForObjectDetection:
    config = DeformableDetrConfig(
        **overrides,
        backbone='resnet50',
        num_labels=NUM_CLASSES,
        d_model=WIDTH,
        encoder_layers=ENCODER_LAYERS,
        decoder_layers=DECODER_LAYERS,
        encoder_ffn_dim=96,
        decoder_ffn_dim=96,
        num_queries=QUERIES,
        two_stage_num_proposals=QUERIES,
        auxiliary_loss=True,
        class_cost=2,
        dropout=0.0,
    )
    model = DeformableDetrForObjectDetection(config)
    randomize(model)
    return model.eval()


def build_ours(repo_root: Path, name: str) -> DeformableDETR:
    """The variant's own config, made narrow and shallow."""
    config = Config.fromfile(repo_root / f'configs/deformable_detr/{name}_r50_16xb2-50e_coco.py').model
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
    levels = len(ours.neck.convs)
    state = convert(theirs.state_dict(), levels)
    missing, unexpected = ours.load_state_dict(state, strict=False)
    assert not unexpected
    assert all(name.endswith('num_batches_tracked') for name in missing)
    return theirs, ours, padded_batch(NUM_CLASSES, [(160, 120), (112, 192)])


def run(pair):
    theirs, ours, (images, samples, mask, labels) = pair
    outputs = theirs(pixel_values=images, pixel_mask=mask, labels=labels)
    return outputs, ours(images, samples, mode='tensor')


def their_losses(theirs, outputs, labels) -> dict[str, torch.Tensor]:
    """Return Hugging Face's loss terms under our names, with the paper's weights."""
    terms = dict(outputs.loss_dict)
    if theirs.config.two_stage:  # their model leaves the proposals' loss out, their criterion can compute it
        criterion = DeformableDetrImageLoss(
            DeformableDetrHungarianMatcher(class_cost=2, bbox_cost=5, giou_cost=2),
            NUM_CLASSES,
            0.25,
            ['labels', 'boxes'],
        )
        proposals = {
            'logits': outputs.enc_outputs_class,
            'pred_boxes': outputs.enc_outputs_coord_logits.sigmoid(),
        }
        objects = [{**label, 'class_labels': torch.zeros_like(label['class_labels'])} for label in labels]
        terms |= {f'{name}_enc': value for name, value in criterion(proposals, objects).items()}
    return named_losses(terms, {'loss_ce': 2.0, 'loss_bbox': 5.0, 'loss_giou': 2.0})


def test_logits_and_boxes_of_every_decoder_layer(pair):
    with torch.no_grad():
        outputs, preds = run(pair)
    layers = [*outputs.auxiliary_outputs, {'logits': outputs.logits, 'pred_boxes': outputs.pred_boxes}]
    assert preds.cls_logits.shape[0] == len(layers) == DECODER_LAYERS
    for n, layer in enumerate(layers):
        torch.testing.assert_close(preds.cls_logits[n], layer['logits'], atol=1e-4, rtol=0)
        torch.testing.assert_close(preds.boxes_cxcywh_norm[n], layer['pred_boxes'], atol=1e-4, rtol=0)


def test_proposals_of_the_two_stage_variant(pair):
    with torch.no_grad():
        outputs, preds = run(pair)
    if outputs.enc_outputs_class is None:
        assert preds.proposals is None
        return
    torch.testing.assert_close(preds.proposals.cls_logits, outputs.enc_outputs_class, atol=1e-4, rtol=0)
    boxes = outputs.enc_outputs_coord_logits.sigmoid()
    torch.testing.assert_close(preds.proposals.boxes_cxcywh_norm, boxes, atol=1e-4, rtol=0)


def test_every_loss_term_and_the_gradient_of_every_parameter(pair):
    theirs, ours, (images, samples, mask, labels) = pair
    outputs = theirs(pixel_values=images, pixel_mask=mask, labels=labels)
    expected = their_losses(theirs, outputs, labels)
    losses = ours(images, samples, mode='loss')
    assert losses.keys() == expected.keys()
    for name, value in losses.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-5, atol=0, msg=lambda m, n=name: f'{n}: {m}'
        )

    theirs.zero_grad()
    ours.zero_grad()
    sum(expected.values()).backward()
    sum(losses.values()).backward()
    gradients = {n: p.grad for n, p in theirs.named_parameters(remove_duplicate=False) if p.grad is not None}
    gradients = convert(gradients, len(ours.neck.convs))
    for name, parameter in ours.named_parameters(remove_duplicate=False):
        if (
            not parameter.requires_grad
        ):  # Hugging Face trains the stem of timm's backbones, the paper does not
            assert name.startswith(('backbone.conv1', 'backbone.layer1')) or parameter.dim() == 1
            continue
        grad = sum(p.grad for p in tied_parameters(ours, theirs, name))
        error, size = (grad - gradients[name]).norm(), gradients[name].norm()
        assert error <= 1e-3 * size, f'{name}: off by {error:.2e} of {size:.2e}'


def tied_parameters(ours, theirs, name: str) -> set[torch.nn.Parameter]:
    """Parameters of ours that share a tensor in Hugging Face's model.

    It shares the class branches among the layers of refined models too, where the paper gives each its own.
    """
    own = dict(ours.named_parameters(remove_duplicate=False))
    if not name.startswith('bbox_head.cls_branches.'):
        return {own[name]}
    kind = name.rsplit('.', 1)[1]
    _, index, _ = name.removeprefix('bbox_head.').split('.')
    same = [
        i
        for i, branch in enumerate(theirs.class_embed)
        if getattr(branch, kind) is getattr(theirs.class_embed[int(index)], kind)
    ]
    return {own[f'bbox_head.cls_branches.{i}.{kind}'] for i in same}
