"""ChannelMapper: which level comes from where, with which norm and bias."""

import pytest
import torch
import torch.nn.functional as F

from ddetr.models.necks import ChannelMapper
from ddetr.utils import ConfigError

FEATS = tuple(torch.randn(2, c, 16 >> i, 24 >> i) for i, c in enumerate((4, 8, 12)))
NORM = {'type': 'GN', 'num_groups': 2}


def test_extra_levels_look_at_the_backbones_last_level_then_at_the_level_before():
    neck = ChannelMapper([4, 8, 12], 6, kernel_size=1, norm_cfg=NORM, act_cfg=None, bias=True, num_outs=5)
    outs = neck(FEATS)
    expected = []
    for feat, conv in zip(FEATS, neck.convs, strict=True):
        out = F.conv2d(feat, conv.conv.weight, conv.conv.bias)
        expected.append(F.group_norm(out, 2, conv.gn.weight, conv.gn.bias))
    coarse = FEATS[-1]
    for conv in neck.extra_convs:
        out = F.conv2d(coarse, conv.conv.weight, conv.conv.bias, stride=2, padding=1)
        coarse = F.group_norm(out, 2, conv.gn.weight, conv.gn.bias)
        expected.append(coarse)
    assert [tuple(out.shape[1:]) for out in outs] == [
        (6, 16, 24),
        (6, 8, 12),
        (6, 4, 6),
        (6, 2, 3),
        (6, 1, 2),
    ]
    for out, value in zip(outs, expected, strict=True):
        torch.testing.assert_close(out, value)


def test_bias_is_left_out_before_a_norm_unless_asked_for():
    assert ChannelMapper([4], 6, norm_cfg=NORM).convs[0].conv.bias is None
    assert ChannelMapper([4], 6, norm_cfg=NORM, bias=True).convs[0].conv.bias is not None
    plain = ChannelMapper([4], 6)
    assert not plain.convs[0].conv.bias.any()
    bound = (6 / (9 * (4 + 6))) ** 0.5  # Xavier
    assert 0.8 * bound < plain.convs[0].conv.weight.abs().max() <= bound


def test_inconsistent_levels_raise():
    with pytest.raises(ValueError, match='num_outs=1 must be at least 2'):
        ChannelMapper([4, 8], 6, num_outs=1)
    given = [feat.shape[1] for feat in FEATS]
    for asked in ([4, 8], [given[0], 5, given[2]]):
        with pytest.raises(ConfigError) as error:
            ChannelMapper(asked, 6)(FEATS)
        assert f'neck.in_channels={asked}, but the backbone returns {given} channels' in str(error.value)
