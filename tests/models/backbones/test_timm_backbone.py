"""TimmBackbone against timm's whole models, whose levels come from `forward_intermediates`, not `features_only`."""

import copy
import re
import sys

import pytest
import torch
import torch.nn.functional as F
from mmengine.optim import build_optim_wrapper
from safetensors.torch import save_file
from torch import nn

from ddetr.analysis.batches import random_batch
from ddetr.models.backbones import TimmBackbone
from ddetr.models.backbones.layer_decay import layer_factors
from ddetr.models.detectors.base_detector import build_backbone_and_neck
from ddetr.registry import MODELS
from ddetr.utils.errors import CheckpointError, ConfigError
from ddetr.weights import pretrained as pretrained_module
from tests.conftest import ROOT
from tests.engine.malicious import _by_zip
from tests.models.helpers import narrow_deformable_detr

timm = pytest.importorskip('timm')

SWIN, CONVNEXT = 'swin_tiny_patch4_window7_224', 'convnext_tiny'
SMALL = 'convnext_atto'  # 3.4 M parameters; depths 2, 2, 6, 2
NAMES = ('resnet50', SWIN, CONVNEXT, 'tf_efficientnet_lite0')


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def whole_model(name, **options):
    """timm's classifier with weights far from their initial values, in eval mode."""
    options |= {'dynamic_img_size': True} if name.startswith('swin') else {}
    model = timm.create_model(name, **options).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
        for key, value in model.named_buffers():
            if key.endswith('running_mean'):
                value.normal_(0, 0.1)
            elif key.endswith('running_var'):
                value.uniform_(0.5, 1.5)
    return model


def loaded(name, path, **options):
    backbone = TimmBackbone(name, checkpoint=str(path), **options)
    backbone.init_weights()
    return backbone.eval()


@torch.no_grad()
def last_levels(model, images):
    return model.forward_intermediates(images, intermediates_only=True)[-3:]


@pytest.mark.parametrize('suffix', ['.pth', '.safetensors'])
@pytest.mark.parametrize('name', NAMES)
def test_file_of_the_whole_model_gives_its_features(name, suffix, tmp_path):
    theirs, path = whole_model(name), tmp_path / f'weights{suffix}'
    state = theirs.state_dict()
    save_file(state, path) if suffix == '.safetensors' else torch.save(state, path)
    ours = loaded(name, path)
    images = torch.randn(2, 3, 64, 96)
    with torch.no_grad():
        feats = ours(images)
    assert [feat.shape[1] for feat in feats] == ours.out_channels
    assert [(64 // s, 96 // s) for s in (8, 16, 32)] == [tuple(feat.shape[2:]) for feat in feats]
    assert ours.out_strides == [8, 16, 32]
    for feat, expected in zip(feats, last_levels(theirs, images), strict=True):
        assert feat.std() > 1e-3
        torch.testing.assert_close(feat, expected)


@pytest.mark.parametrize(
    ('name', 'padded'), [('resnet50', (213, 317)), (SWIN, (216, 320)), (CONVNEXT, (224, 320))]
)
def test_odd_sizes_are_padded_to_the_models_stride(name, padded, tmp_path):
    theirs, path = whole_model(name), tmp_path / 'weights.pth'
    torch.save(theirs.state_dict(), path)
    images = torch.randn(1, 3, 213, 317)
    with torch.no_grad():
        feats = loaded(name, path)(images)
    assert [tuple(feat.shape[2:]) for feat in feats] == [
        (27, 40),
        (14, 20),
        (7, 10),
    ]  # ResNet's own: rounded up
    whole = last_levels(theirs, F.pad(images, (0, padded[1] - 317, 0, padded[0] - 213)))
    for feat, expected in zip(feats, whole, strict=True):
        torch.testing.assert_close(feat, expected[..., : feat.shape[2], : feat.shape[3]])


def test_neck_takes_channels_from_the_backbone():
    backbone, neck = build_backbone_and_neck(
        {'type': 'TimmBackbone', 'model_name': SMALL},
        {'type': 'ChannelMapper', 'kernel_size': 1, 'in_channels': None, 'out_channels': 32, 'num_outs': 4},
    )
    assert backbone.out_channels == [80, 160, 320]
    outs = neck(backbone(torch.randn(1, 3, 64, 64)))
    assert [tuple(out.shape[1:]) for out in outs] == [(32, 8, 8), (32, 4, 4), (32, 2, 2), (32, 1, 1)]


@pytest.mark.parametrize(
    ('options', 'indices', 'strides'),
    [
        ({'out_indices': (0, -1)}, (0, 4), [2, 32]),
        ({'out_strides': (4, 16)}, (1, 3), [4, 16]),
        # DC5: the last level of stride 16 is the dilated fifth stage
        ({'out_strides': (8, 16), 'options': {'output_stride': 16}}, (2, 4), [8, 16]),
    ],
)
def test_levels_by_index_or_stride(options, indices, strides):
    backbone = TimmBackbone('resnet18', **options)
    assert backbone.out_indices == indices
    assert backbone.out_strides == strides
    shapes = [tuple(feat.shape[1:]) for feat in backbone(torch.randn(1, 3, 64, 64))]
    assert shapes == [(c, 64 // s, 64 // s) for c, s in zip(backbone.out_channels, strides, strict=True)]


def test_drop_path_rate_reaches_the_model():
    rates = {
        m.drop_prob for m in TimmBackbone(SMALL, drop_path_rate=0.2).modules() if hasattr(m, 'drop_prob')
    }
    assert max(rates) == pytest.approx(0.2)


def test_with_cp_computes_the_same_gradients():
    torch.manual_seed(1)
    plain = TimmBackbone('resnet18').train()
    saving = TimmBackbone('resnet18', with_cp=True).train()
    saving.load_state_dict(plain.state_dict())
    assert saving.timm_model.grad_checkpointing
    images = torch.randn(1, 3, 64, 64)
    for model in (plain, saving):
        sum(feat.square().mean() for feat in model(images)).backward()
    for one, other in zip(plain.parameters(), saving.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad)


@pytest.mark.parametrize(
    ('name', 'frozen', 'trained'),
    [
        ('resnet18', ('conv1', 'bn1', 'layer1', 'layer2'), ('layer3', 'layer4')),
        (SWIN, ('patch_embed', 'layers_0', 'layers_1'), ('layers_2', 'layers_3')),
        (SMALL, ('stem_0', 'stem_1', 'stages_0', 'stages_1'), ('stages_2', 'stages_3')),
    ],
)
def test_stem_and_frozen_stages_have_no_gradient_and_stay_in_eval_mode(name, frozen, trained):
    model = TimmBackbone(name, frozen_stages=2, drop_path_rate=0.1, norm_eval=False).train()
    parts = dict(model.timm_model.named_children())
    for part in frozen:
        assert not any(p.requires_grad for p in parts[part].parameters())
        assert not any(m.training for m in parts[part].modules())
    for part in trained:
        assert all(p.requires_grad for p in parts[part].parameters())
        assert all(m.training for m in parts[part].modules())
    assert {*frozen, *trained} >= {n for n, m in parts.items() if list(m.parameters())}


def test_frozen_stages_zero_is_the_stem():
    model = TimmBackbone('resnet18', frozen_stages=0)
    frozen = {name for name, p in model.timm_model.named_parameters() if not p.requires_grad}
    assert frozen == {'conv1.weight', 'bn1.weight', 'bn1.bias'}


@pytest.mark.parametrize('norm_eval', [True, False])
def test_norm_eval_keeps_statistics(norm_eval):
    model = TimmBackbone('resnet18', frozen_stages=1, norm_eval=norm_eval).train()
    before = {key: value.clone() for key, value in model.named_buffers() if 'running' in key}
    model(torch.randn(2, 3, 64, 64))
    moved = {
        key for key, value in model.named_buffers() if key in before and not torch.equal(value, before[key])
    }
    unfrozen = {key for key in before if re.search(r'layer[234]', key)}
    assert moved == (set() if norm_eval else unfrozen)


def test_norm_cfg_takes_gradients_from_batch_norms_only():
    model = TimmBackbone('resnet18', norm_cfg={'type': 'BN', 'requires_grad': False})
    without = {name for name, p in model.named_parameters() if not p.requires_grad}
    norms = [name for name, m in model.named_modules() if isinstance(m, nn.BatchNorm2d)]
    assert without == {f'{name}.{part}' for name in norms for part in ('weight', 'bias')}


def detector_config(**backbone):
    config = narrow_deformable_detr(ROOT, 'deformable-detr-refine-twostage', width=32, num_queries=8)
    config.backbone = {'type': 'TimmBackbone', 'model_name': SMALL, **backbone}
    config.neck.in_channels = None
    config.neck.norm_cfg.num_groups = 4
    return config


def test_detector_trains_only_what_is_not_frozen():
    model = MODELS.build(detector_config(frozen_stages=2)).train()
    wrapper = build_optim_wrapper(
        model,
        {
            'constructor': 'LayerDecayOptimWrapperConstructor',
            'optimizer': {'type': 'AdamW', 'lr': 1e-3, 'weight_decay': 0.05},
            'paramwise_cfg': {'decay_rate': 0.8},
        },
    )
    before = copy.deepcopy(model.backbone.state_dict())
    losses = model.train_step(random_batch(2, (64, 96), 7), wrapper)
    assert all(loss.isfinite() for loss in losses.values())
    moved = {key for key, value in model.backbone.state_dict().items() if not torch.equal(value, before[key])}
    assert moved == {key for key in before if re.match(r'timm_model\.stages_[23]', key)}


def backbone_rates(model, **paramwise):
    wrapper = build_optim_wrapper(
        model,
        {
            'constructor': 'LayerDecayOptimWrapperConstructor',
            'optimizer': {'type': 'AdamW', 'lr': 1.0, 'weight_decay': 0.5},
            'paramwise_cfg': paramwise,
        },
    )
    names = {id(p): name for name, p in model.named_parameters()}
    return {names[id(g['params'][0])]: (g['lr'], g['weight_decay']) for g in wrapper.optimizer.param_groups}


def test_layer_decay_factors_match_a_manual_calculation():
    model = nn.ModuleDict({'backbone': TimmBackbone(SMALL), 'neck': nn.Linear(2, 2)})
    rates = backbone_rates(model, decay_rate=0.5)
    assert rates.keys() == dict(model.named_parameters()).keys()
    depths, block_of = (2, 2, 6, 2), {}
    for stage, depth in enumerate(depths):
        for block in range(depth):
            block_of[f'backbone.timm_model.stages_{stage}.blocks.{block}.'] = sum(depths[:stage]) + block + 1
        block_of[f'backbone.timm_model.stages_{stage}.downsample.'] = sum(depths[:stage]) + 1
    for name, (rate, decay) in rates.items():
        layer = next((i for prefix, i in block_of.items() if name.startswith(prefix)), 0)
        expected = 1.0 if name.startswith('neck') else 0.5 ** (13 - layer)
        assert rate == pytest.approx(expected), name
        assert decay == 0.5


def mmdetection_layer(name):
    """`get_layer_id_for_convnext` of MMDetection for 6 layers, under timm's names."""
    found = re.match(r'timm_model\.stages_(\d)\.(?:blocks\.(\d+)|downsample)', name)
    stage, block = (int(found[1]), int(found[2] or 0)) if found else (-1, 0)
    return {-1: 0, 0: 1, 1: 2, 2: 3 + block // 3, 3: 6}[stage]


def test_layer_decay_of_convnext_t_is_mmdetections():
    factors = layer_factors(TimmBackbone(CONVNEXT).layer_groups(), 0.95, num_layers=6)
    assert len(factors) == 4 + 18 * 9 + 3 * 4  # stem, blocks, downsampling
    for name, factor in factors.items():
        assert factor == pytest.approx(0.95 ** (6 + 2 - mmdetection_layer(name) - 1)), name


def test_custom_keys_and_layer_decay_multiply():
    model = nn.ModuleDict({'backbone': TimmBackbone(SWIN, frozen_stages=1), 'neck': nn.Linear(2, 2)})
    rates = backbone_rates(
        model,
        decay_rate=0.5,
        num_layers=4,
        flat_decay_mult=0.0,
        custom_keys={'backbone': {'lr_mult': 0.1}, 'blocks.1.norm1': {'lr_mult': 0.1, 'decay_mult': 1.0}},
    )
    prefix = 'backbone.timm_model.layers_'
    assert not any(name.startswith((f'{prefix}0', 'backbone.timm_model.patch')) for name in rates)
    assert rates['neck.weight'] == (1.0, 0.5)
    assert rates['neck.bias'] == (1.0, 0.0)
    # 12 blocks in 4 layers of 3: block 2 of the third stage is block 6 of all, in the second layer
    assert rates[f'{prefix}2.blocks.1.attn.qkv.weight'] == pytest.approx((0.1 * 0.5**3, 0.5))
    assert rates[f'{prefix}2.blocks.2.attn.qkv.weight'] == pytest.approx((0.1 * 0.5**2, 0.5))
    assert rates[f'{prefix}3.blocks.1.attn.qkv.weight'] == pytest.approx((0.1 * 0.5, 0.5))
    assert rates[f'{prefix}3.blocks.1.attn.qkv.bias'] == pytest.approx((0.1 * 0.5, 0.0))
    assert rates[f'{prefix}3.blocks.1.attn.relative_position_bias_table'][1] == 0.0
    assert rates[f'{prefix}3.blocks.1.norm1.weight'][1] == 0.5  # its key says so


@pytest.mark.parametrize(
    ('paramwise', 'message'),
    [
        ({'num_layers': 3}, 'decay_rate=None must be a number'),
        ({'decay_rate': 1.5}, 'decay_rate=1.5 must be'),
        ({'decay_rate': 0.8, 'num_layers': 13}, 'num_layers=13 must be between 1 and 12'),
    ],
)
def test_invalid_layer_decay_raises(paramwise, message):
    with pytest.raises(ConfigError, match=message):
        backbone_rates(nn.ModuleDict({'backbone': TimmBackbone(SMALL)}), **paramwise)


def test_layer_decay_needs_a_backbone_that_has_layers():
    with pytest.raises(ConfigError, match=r'needs a backbone with layer_groups\(\)'):
        backbone_rates(nn.ModuleDict({'backbone': nn.Linear(2, 2)}), decay_rate=0.8)


def original_swin(state):
    """The names of Swin's authors: a stage ends with its downsampling, and masks are stored."""
    renamed = {
        re.sub(r'layers\.(\d)\.downsample', lambda m: f'layers.{int(m[1]) - 1}.downsample', key): value
        for key, value in state.items()
    }
    renamed = {key.replace('head.fc.', 'head.'): value for key, value in renamed.items()}
    return renamed | {'layers.0.blocks.1.attn_mask': torch.zeros(64, 49, 49)}


def original_convnext(state):
    """The names of ConvNeXt's authors."""
    renamed = {}
    for key, value in state.items():
        key = key.replace('stem.', 'downsample_layers.0.').replace('head.fc.', 'head.')
        key = re.sub(r'stages\.(\d)\.downsample', r'downsample_layers.\1', key)
        key = key.replace('.blocks.', '.').replace('conv_dw', 'dwconv').replace('mlp.fc', 'pwconv')
        renamed[key.replace('head.norm.', 'norm.')] = value
    return {'model': renamed}


@pytest.mark.parametrize(
    ('name', 'save'),
    [
        (SWIN, original_swin),
        (CONVNEXT, original_convnext),
        ('resnet18', lambda state: {'state_dict': {f'module.{key}': value for key, value in state.items()}}),
        ('resnet18', lambda state: {'model': {'x': torch.zeros(1)}, 'model_ema': state}),
        ('resnet18', lambda state: {k: v for k, v in state.items() if 'num_batches' not in k and 'fc.' not in k}),
        ('resnet18', lambda state: {f'backbone.{k}': v for k, v in state.items()} | {'neck': state['fc.bias']}),
    ],
    ids=['swin-authors', 'convnext-authors', 'ddp', 'ema', 'old-headless', 'detector'],
)  # fmt: skip
def test_files_that_timm_reads_too(name, save, tmp_path):
    theirs, path = whole_model(name), tmp_path / 'weights.pth'
    torch.save(save(theirs.state_dict()), path)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        feats = loaded(name, path)(images)
    for feat, expected in zip(feats, last_levels(theirs, images), strict=True):
        torch.testing.assert_close(feat, expected)


def test_own_checkpoint_loads_and_one_of_a_detector(tmp_path):
    first = TimmBackbone(SMALL)
    for prefix in ('', 'backbone.'):
        path = tmp_path / f'{prefix}pth'
        torch.save({'state_dict': {f'{prefix}{k}': v for k, v in first.state_dict().items()}}, path)
        second = loaded(SMALL, path)
        assert all(torch.equal(v, second.state_dict()[k]) for k, v in first.state_dict().items())


def test_first_convolution_is_adapted_to_grey_images(tmp_path):
    theirs, path = whole_model('resnet18'), tmp_path / 'weights.pth'
    torch.save(theirs.state_dict(), path)
    ours = loaded('resnet18', path, in_channels=1)
    torch.testing.assert_close(ours.timm_model.conv1.weight, theirs.conv1.weight.sum(1, keepdim=True))
    assert ours(torch.randn(1, 1, 64, 64))[0].shape == (1, 128, 8, 8)


def test_remap_checkpoint_matches_by_order(tmp_path):
    theirs, path = whole_model('resnet18'), tmp_path / 'weights.pth'
    renamed = {f't{i}.{key.rpartition(".")[2]}': v for i, (key, v) in enumerate(theirs.state_dict().items())}
    torch.save(renamed, path)
    with pytest.raises(
        CheckpointError, match=r'conv1.weight \(missing\) and \d+ more.*remap_checkpoint=True'
    ):
        loaded('resnet18', path)
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        feats = loaded('resnet18', path, remap_checkpoint=True)(images)
    torch.testing.assert_close(list(feats), list(last_levels(theirs, images)))
    swapped = list(renamed.items())
    swapped[1:3] = swapped[2], swapped[1]  # a norm's weight and bias, of one shape
    for items, fault in (
        (swapped, 't2.bias .* does not match bn1.weight'),
        (swapped[1:], '121 tensors'),
    ):
        torch.save(dict(items), path)
        with pytest.raises(CheckpointError, match=f'cannot be remapped: .*{fault}'):
            loaded('resnet18', path, remap_checkpoint=True)


@pytest.mark.parametrize(
    ('change', 'message'),
    [
        (lambda s: s.pop('layer4.1.bn2.running_var'), r'layer4\.1\.bn2\.running_var \(missing\) and 0 more'),
        (lambda s: s.update({'layer2.2.conv1.weight': s['fc.bias']}), r'layer2\.2\.conv1\.weight \(unexpected\)'),
        (lambda s: s.update({'conv1.weight': torch.zeros(64, 3, 3, 3)}), r'conv1\.weight \(shape \(64, 3, 3, 3\)'),
    ],
)  # fmt: skip
def test_file_that_does_not_fit_is_an_error(change, message, tmp_path):
    state, path = timm.create_model('resnet18').state_dict(), tmp_path / 'weights.pth'
    change(state)
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=message):
        loaded('resnet18', path)


def test_malicious_file_runs_no_code(tmp_path):
    path, marker = tmp_path / 'weights.pth', tmp_path / 'marker'
    _by_zip(path, marker)
    with pytest.raises(CheckpointError, match='was rejected'):
        loaded('resnet18', path)
    assert not marker.exists()


def test_weights_wait_for_init_weights_and_a_missing_file_is_an_error():
    backbone = TimmBackbone('resnet18', checkpoint='nowhere.pth')  # a detector's own checkpoint may follow
    with pytest.raises(CheckpointError, match=r'nowhere\.pth does not exist'):
        backbone.init_weights()


def test_pretrained_weights_are_timms_download(monkeypatch):
    theirs, create, asked = whole_model('resnet18'), timm.create_model, []

    def download(name, pretrained=False, **keywords):
        model = create(name, **keywords)
        if pretrained:
            asked.append(name)
            model.load_state_dict(theirs.state_dict(), strict=False)
        return model

    monkeypatch.setattr(timm, 'create_model', download)
    model = MODELS.build(detector_config(model_name='resnet18.a1_in1k', pretrained=True))
    assert asked == []
    messages = []
    monkeypatch.setattr(pretrained_module, 'print_log', lambda text, **_: messages.append(text))
    pretrained_module.warn_of_random_backbone(model)
    assert messages == []
    model.init_weights()
    assert asked == ['resnet18.a1_in1k']
    assert torch.equal(model.backbone.timm_model.layer4[1].conv2.weight, theirs.layer4[1].conv2.weight)


def test_failing_download_is_one_error(monkeypatch):
    def offline(*_, **__):
        raise OSError('We couldn\'t connect to "https://huggingface.co"\nand more')

    backbone = TimmBackbone('resnet18.a1_in1k', pretrained=True)
    monkeypatch.setattr('timm.models._builder.load_state_dict_from_hf', offline)
    with pytest.raises(
        CheckpointError, match=r'pretrained weights for resnet18\.a1_in1k .*checkpoint=FILE'
    ) as error:
        backbone.init_weights()
    assert '\n' not in str(error.value)


def test_missing_timm_gives_one_clear_error(monkeypatch):
    monkeypatch.setitem(sys.modules, 'timm', None)
    with pytest.raises(ConfigError, match=r'^TimmBackbone needs timm: pip install timm$'):
        TimmBackbone('resnet18')


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'model_name': 'convnext_tinny'}, "'convnext_tinny': timm has no such model; did you mean convnext_tiny"),
        ({'model_name': 'qqqqqqqqqqqq'}, 'timm has no such model'),
        ({'model_name': 'hf-hub:timm/resnet18'}, 'timm has no such model'),
        ({'model_name': 'resnet18.nobody'}, "no weights with tag 'nobody' for resnet18. Available tags: .*a1_in1k"),
        ({'out_indices': (1, 5)}, r'out_indices=\(1, 5\): resnet18 has no level 5. Its levels are 0: stride 2 \(64 '),
        ({'out_indices': (3, 2)}, 'list each level once, finest first'),
        ({'out_indices': ()}, 'list each level once'),
        ({'out_strides': (8, 64)}, r'out_strides=\(8, 64\): resnet18 has no level 64. .*4: stride 32 \(512 channels\)'),
        ({'model_name': 'vit_tiny_patch16_224'}, r'out_strides=\(8, 16, 32\) \(the default\): vit_tiny.* no level 8\.'),
        ({'out_indices': (1,), 'out_strides': (8,)}, 'out_indices or out_strides'),
        ({'pretrained': True, 'checkpoint': 'a.pth'}, 'one of pretrained, checkpoint and init_cfg'),
        ({'options': {'checkpoint_path': 'a.pth'}}, r'options\.checkpoint_path: use model\.backbone\.checkpoint'),
        ({'options': {'window': 3}}, "timm's resnet18 does not accept 'window'"),
        ({'frozen_stages': 5}, 'frozen_stages=5: resnet18 has 4 stages'),
        ({'norm_cfg': {'type': 'GN'}}, "norm_cfg=.*keeps the model's norms"),
        ({'model_name': SMALL, 'norm_cfg': {'requires_grad': False}}, 'convnext_atto has none: remove norm_cfg'),
        ({'model_name': 'mvitv2_tiny'}, 'supports only a fixed image size'),
    ],
)  # fmt: skip
def test_invalid_options_give_one_clear_error(options, message):
    with pytest.raises(ConfigError, match=message) as error:
        TimmBackbone(**{'model_name': 'resnet18', **options})
    assert '\n' not in str(error.value)


def test_model_without_feature_levels_is_an_error(monkeypatch):
    create = timm.create_model

    def without_features(name, features_only=False, **keywords):
        if features_only:
            raise RuntimeError('features_only not implemented for this model.')
        return create(name, **keywords)

    monkeypatch.setattr(timm, 'create_model', without_features)
    with pytest.raises(
        ConfigError,
        match=r'does not support feature extraction \(features_only\) for this model \(features_only not',
    ):
        TimmBackbone('resnet18')
