import re
from collections import OrderedDict

import pytest
import torch
from torchvision.ops.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool

from ddetr.models.necks import FPN
from ddetr.utils import ConfigError


def test_equals_torchvisions_pyramid_on_odd_sizes():
    ours = FPN(in_channels=[4, 6, 8], out_channels=5, num_outs=4)
    theirs = FeaturePyramidNetwork([4, 6, 8], 5, LastLevelMaxPool())
    state = {}
    for key, value in theirs.state_dict().items():
        key = re.sub(r'inner_blocks\.(\d)\.0', r'lateral_convs.\1.conv', key)
        state[re.sub(r'layer_blocks\.(\d)\.0', r'fpn_convs.\1.conv', key)] = value.normal_()
    ours.load_state_dict(state, strict=True)
    feats = [torch.randn(2, 4, 13, 21), torch.randn(2, 6, 7, 11), torch.randn(2, 8, 4, 6)]
    expected = theirs(OrderedDict((str(i), feat) for i, feat in enumerate(feats)))
    outs = ours(feats)
    assert len(outs) == 4
    for out, wanted in zip(outs, expected.values(), strict=True):
        torch.testing.assert_close(out, wanted)


def test_several_extra_levels_take_every_second_pixel_of_the_one_before():
    *_, third, fourth = FPN(in_channels=[3, 3], out_channels=4, num_outs=4)(
        [torch.randn(1, 3, 16, 16), torch.randn(1, 3, 8, 9)]
    )
    assert third.shape == (1, 4, 4, 5)
    assert torch.equal(fourth, third[..., ::2, ::2])


def test_wrong_numbers_of_levels_raise():
    with pytest.raises(ValueError, match='num_outs=1 must be at least 2'):
        FPN(in_channels=[4, 6], out_channels=5, num_outs=1)
    neck = FPN(in_channels=[4, 6], out_channels=5, num_outs=2)
    with pytest.raises(
        ConfigError, match=r'neck.in_channels=\[4, 6\], but the backbone returns \[4\] channels'
    ):
        neck([torch.zeros(1, 4, 8, 8)])
    with pytest.raises(
        ConfigError, match=r'in_channels=\[4, 6\], but the backbone returns \[4, 7\] channels'
    ):
        neck([torch.zeros(1, 4, 8, 8), torch.zeros(1, 7, 4, 4)])
