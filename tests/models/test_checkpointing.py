"""Activation checkpointing: same results with less memory, for every detector family."""

import pytest
import torch
from mmengine.config import Config
from torch.autograd.graph import saved_tensors_hooks

from ddetr.models.backbones import ResNet
from ddetr.registry import MODELS
from ddetr.utils import ConfigError
from tests.models.helpers import narrow
from tests.parity.hf import padded_batch

SHAPES = [(128, 96), (80, 160)]
FAMILIES = {
    'deformable-detr': 'deformable_detr/deformable-detr_r50_16xb2-50e_coco.py',
    'two-stage': 'deformable_detr/h-deformable-detr_r50_16xb2-12e_coco.py',
    'detr': 'detr/detr_r50_16xb4-500e_coco.py',
    'dino': 'dino/dino-4scale_r50_8xb2-12e_coco.py',
    'faster-rcnn': 'faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',
}
BATCH_NORM = {'norm_cfg': {'type': 'BN', 'requires_grad': True}, 'norm_eval': False, 'frozen_stages': -1}


def model_config(root, family, **backbone):
    """The family's model: ResNet-18, narrow layers with dropout."""
    if family == 'faster-rcnn':
        config = Config.fromfile(root / 'configs' / FAMILIES[family]).model
        config.backbone.update(depth=18, init_cfg=None)
        config.neck.update(in_channels=[64, 128, 256, 512], out_channels=32)
        config.rpn_head.update(in_channels=32, feat_channels=32)
        config.roi_head.bbox_roi_extractor.out_channels = 32
        config.roi_head.bbox_head.update(in_channels=32, fc_out_channels=64, num_classes=7)
    else:
        config = narrow(root, FAMILIES[family])
        if family == 'two-stage':
            config.num_one2many_queries = 20
        for part in (config.encoder, config.decoder):
            part.num_layers = 2
            part.layer_cfg.ffn_cfg.ffn_drop = 0.3
            for key in part.layer_cfg.keys() - {'ffn_cfg'}:
                part.layer_cfg[key].dropout = 0.3
    config.backbone.update(backbone)
    return config


def with_checkpointing(config):
    config = config.copy()
    config.backbone = {**config.backbone, 'with_cp': True}
    for part in {'encoder', 'decoder'} & config.keys():
        config[part] = {**config[part], 'num_cp': 2}
    return config


def train_once(config, state, amp=False):
    """Losses, gradients, buffers and the bytes of activations kept for the backward pass, after one training step."""
    model = MODELS.build(config).train()
    model.load_state_dict(state)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    images, samples, *_ = padded_batch(7, SHAPES)
    for sample in samples:
        sample.set_metainfo({'pad_shape': tuple(images.shape[-2:])})
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    torch.manual_seed(1)
    with saved_tensors_hooks(pack, lambda tensor: tensor), torch.autocast('cpu', torch.bfloat16, enabled=amp):
        losses = model(images, samples, mode='loss')
        total = sum(value for name, value in losses.items() if 'loss' in name)
    total.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return losses, gradients, dict(model.named_buffers()), sum(kept.values())


@pytest.mark.parametrize('amp', [False, True], ids=['fp32', 'bf16'])
@pytest.mark.parametrize('family', FAMILIES)
def test_losses_and_gradients_are_bit_equal_and_use_less_memory(repo_root, family, amp):
    config = model_config(repo_root, family, frozen_stages=1)
    state = MODELS.build(config).state_dict()
    losses, gradients, _, kept = train_once(config, state, amp)
    losses_cp, gradients_cp, _, kept_cp = train_once(with_checkpointing(config), state, amp)
    assert losses.keys() == losses_cp.keys()
    assert all(torch.equal(value, losses_cp[name]) for name, value in losses.items())
    assert len(gradients) > 40
    assert gradients.keys() == gradients_cp.keys()
    assert [n for n, grad in gradients.items() if not torch.equal(grad, gradients_cp[n])] == []
    # without layers to checkpoint, the regions' features are most of what a small model keeps
    assert kept_cp < (0.9 if family == 'faster-rcnn' else 0.8) * kept


@pytest.mark.parametrize('family', ['deformable-detr', 'faster-rcnn'])
def test_trained_batch_norms_count_a_batch_once(repo_root, family):
    config = model_config(repo_root, family, **BATCH_NORM)
    state = MODELS.build(config).state_dict()
    _, gradients, buffers, _ = train_once(config, state)
    _, gradients_cp, buffers_cp, _ = train_once(with_checkpointing(config), state)
    assert buffers['backbone.bn1.num_batches_tracked'] == 1
    assert [n for n, value in buffers.items() if not torch.equal(value, buffers_cp[n])] == []
    assert [n for n, grad in gradients.items() if not torch.equal(grad, gradients_cp[n])] == []


def calls(layers):
    """A list that gets the index of each of `layers` as it is called."""
    called = []
    for i, layer in enumerate(layers):
        layer.register_forward_pre_hook(lambda *_, i=i: called.append(i))
    return called


@pytest.mark.parametrize('part', ['encoder', 'decoder'])
@pytest.mark.parametrize('family', ['deformable-detr', 'detr'])
def test_num_cp_is_the_number_of_recomputed_layers(repo_root, family, part):
    config = model_config(repo_root, family)
    config[part].num_layers, config[part].num_cp = 3, 2
    model = MODELS.build(config).train()
    called = calls(getattr(model, part).layers)
    images, samples, *_ = padded_batch(7, SHAPES)
    losses = model(images, samples, mode='loss')
    assert called == [0, 1, 2]
    sum(losses.values()).backward()
    assert called[3:] == [1, 0]  # the backward pass comes from behind; the last layer kept what it needs


def test_nothing_is_recomputed_outside_training():
    model = ResNet(18, with_cp=True).eval()
    called = calls(model.layer2)
    model(torch.randn(1, 3, 64, 64))[-1].sum().backward()
    with torch.no_grad():
        model.train()(torch.randn(1, 3, 64, 64))
    assert called == [0, 1] * 2


@pytest.mark.parametrize('family', ['deformable-detr', 'detr'])
@pytest.mark.parametrize('part', ['encoder', 'decoder'])
def test_more_checkpoints_than_layers_is_an_error(repo_root, family, part):
    config = model_config(repo_root, family)
    config[part].num_cp = 7
    with pytest.raises(ConfigError, match=f'model.{part}.num_cp=7 exceeds num_layers=2'):
        MODELS.build(config)
