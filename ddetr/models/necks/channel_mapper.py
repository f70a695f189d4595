"""Brings the backbone's levels to one width and adds coarser ones (Zhu et al., 2021, appendix A.1)."""

from collections.abc import Sequence

from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, xavier_init
from torch import Tensor, nn

from ddetr.registry import MODELS
from ddetr.utils.errors import ConfigError


@MODELS.register_module()
class ChannelMapper(BaseModule):
    """One convolution a level, and 3x3 convolutions of stride 2 for the levels that the backbone lacks.

    Args:
        in_channels: of the backbone's levels.
        out_channels: of all resulting levels.
        kernel_size: of the convolutions on the backbone's levels.
        conv_cfg, norm_cfg, act_cfg: as in mmcv's `ConvModule`.
        bias: of the convolutions; `auto` leaves it out where a norm follows. Zhu et al.'s code has a
            bias in spite of its group norm, so its weights need `True`.
        num_outs: number of resulting levels, at least `len(in_channels)`; None for just those.

    Raises:
        ValueError: fewer `num_outs` than `in_channels`.
        ConfigError: at `forward`, levels of other channels or another number of them.
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
            raise ValueError(f'num_outs={num_outs} is below the {len(in_channels)} levels of in_channels')
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
                f'neck.in_channels={self.in_channels}, but the backbone gives {given} channels: correct the neck.'
            )
        outs = [conv(feat) for conv, feat in zip(self.convs, feats, strict=True)]
        for i, conv in enumerate(
            self.extra_convs
        ):  # the first looks at the backbone, the next at the level before
            outs.append(conv(outs[-1] if i else feats[-1]))
        return tuple(outs)
