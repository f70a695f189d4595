"""Neck that maps backbone levels to a common width and adds coarser levels (Zhu et al., 2021, appendix A.1)."""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, xavier_init
from torch import Tensor, nn

from ddetr.registry import MODELS
from ddetr.utils.errors import ConfigError


@MODELS.register_module()
class ChannelMapper(BaseModule):
    """One convolution per backbone level, and 3x3 convolutions of stride 2 for additional coarser levels.

    Args:
        in_channels: Channels of each backbone level.
        out_channels: Output channels, the same at every level.
        kernel_size: Kernel size of the convolutions on backbone levels.
        conv_cfg, norm_cfg, act_cfg: As in mmcv's `ConvModule`.
        bias: Whether convolutions have a bias; `auto` omits it before a norm. The code of Zhu et al. has
            a bias in addition to group norm, so its weights need `True`.
        num_outs: Number of output levels, at least `len(in_channels)`; None for exactly as many.

    Raises:
        ValueError: `num_outs` is smaller than `len(in_channels)`.
        ConfigError: In `forward`: number or channels of the input levels differ from `in_channels`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        kernel_size: int = 3,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = dict(type='ReLU'),  # noqa: B006,C408  never written to
        bias: bool | str = 'auto',
        num_outs: int | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self.in_channels = list(in_channels)
        num_outs = len(in_channels) if num_outs is None else num_outs
        if num_outs < len(in_channels):
            raise ValueError(
                f'num_outs={num_outs} must be at least {len(in_channels)}, the number of in_channels'
            )
        common = {'conv_cfg': conv_cfg, 'norm_cfg': norm_cfg, 'act_cfg': act_cfg, 'bias': bias}
        self.convs = nn.ModuleList(
            ConvModule(c, out_channels, kernel_size, padding=(kernel_size - 1) // 2, **common)
            for c in in_channels
        )
        extra = num_outs - len(in_channels)
        self.extra_convs = nn.ModuleList(
            ConvModule(c, out_channels, 3, stride=2, padding=1, **common)
            for c in [in_channels[-1], *[out_channels] * extra][:extra]
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                xavier_init(module, distribution='uniform')

    def forward(self, feats: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """L_in x (B, C_i, H_i, W_i) -> L x (B, C, H_i, W_i)."""
        if (given := [feat.shape[1] for feat in feats]) != self.in_channels:
            raise ConfigError(
                f'neck.in_channels={self.in_channels}, but the backbone returns {given} channels: correct in_channels.'
            )
        outs = [conv(feat) for conv, feat in zip(self.convs, feats, strict=True)]
        for i, conv in enumerate(
            self.extra_convs
        ):  # the first takes the last backbone level, the others the previous output
            outs.append(conv(outs[-1] if i else feats[-1]))
        return tuple(outs)
