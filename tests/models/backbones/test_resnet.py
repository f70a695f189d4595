"""ResNet against torchvision's, whose weights and names it shares."""

import pytest
import torch
import torchvision
from torch import nn

from ddetr.models.backbones import ResNet, ResNeXt


@pytest.mark.parametrize(
    ('name', 'build'),
    [
        ('resnet18', lambda: ResNet(18)),
        ('resnet50', lambda: ResNet(50)),
        ('resnext50_32x4d', lambda: ResNeXt(50, groups=32, base_width=4)),
        ('resnext101_64x4d', lambda: ResNeXt(101, groups=64, base_width=4)),
    ],
)
def test_features_equal_torchvision_with_the_same_weights(name, build):
    theirs = getattr(torchvision.models, name)(weights=None).eval()
    ours = build().eval()
    missing, unexpected = ours.load_state_dict(theirs.state_dict(), strict=False)
    assert not missing
    assert unexpected == ['fc.weight', 'fc.bias']
    images = torch.randn(1, 3, 64, 96)
    x = theirs.maxpool(theirs.relu(theirs.bn1(theirs.conv1(images))))
    with torch.no_grad():
        for i, feat in enumerate(ours(images)):
            x = getattr(theirs, f'layer{i + 1}')(x)
            torch.testing.assert_close(feat, x)


def test_dc5_equals_torchvisions_dilation():
    theirs = torchvision.models.resnet50(
        weights=None, replace_stride_with_dilation=[False, False, True]
    ).eval()
    ours = ResNet(50, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), out_indices=(3,)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    body = nn.Sequential(*list(theirs.children())[:-2])
    images = torch.randn(1, 3, 64, 96)
    with torch.no_grad():
        feat = ours(images)[0]
        assert feat.shape == (1, 2048, 4, 6)
        torch.testing.assert_close(feat, body(images))


def test_basic_blocks_can_be_dilated():
    feat = ResNet(18, strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2), out_indices=(3,))(
        torch.randn(1, 3, 64, 96)
    )
    assert feat[0].shape == (1, 512, 4, 6)


def test_caffe_style_moves_the_stride_to_the_first_convolution():
    block = ResNet(50, style='caffe').layer2[0]
    assert (block.conv1.stride, block.conv2.stride) == ((2, 2), (1, 1))


def test_frozen_parts_have_no_gradient_and_keep_their_statistics():
    model = ResNet(18, frozen_stages=1, norm_cfg={'type': 'BN', 'requires_grad': False}).train()
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert not any(name.startswith(('conv1', 'bn1', 'layer1')) or '.bn' in name for name in trained)
    assert {'layer2.0.conv1.weight', 'layer4.1.conv2.weight'} <= trained
    before = {name: value.clone() for name, value in model.named_buffers()}
    model(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


def test_norms_of_unfrozen_stages_can_be_trained():
    model = ResNet(18, frozen_stages=1, norm_eval=False).train()
    assert not model.layer1[0].bn1.training
    assert model.layer2[0].bn1.training
    before = model.layer2[0].bn1.running_mean.clone()
    model(torch.randn(2, 3, 64, 64))
    assert not torch.equal(model.layer2[0].bn1.running_mean, before)


@pytest.mark.parametrize(
    ('options', 'message'),
    [
        ({'depth': 20}, 'depth=20'),
        ({'depth': 18, 'style': 'tf'}, "style='tf'"),
        ({'depth': 18, 'num_stages': 2, 'out_indices': (0, 3)}, 'num_stages=2'),
        ({'depth': 18, 'strides': (1, 2)}, 'num_stages=4'),
        ({'depth': 18, 'norm_cfg': {'type': 'GN'}}, 'GN'),
    ],
)
def test_invalid_options_raise(options, message):
    with pytest.raises(ValueError, match=message):
        ResNet(**options)
