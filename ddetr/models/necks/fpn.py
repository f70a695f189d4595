"""Feature pyramid network (Lin et al., "Feature Pyramid Networks")."""

from collections.abc import Sequence

import torch.nn.functional as F
from mmcv.cnn import ConvModule
from mmengine.model import BaseModule, xavier_init
from torch import Tensor, nn

from ddetr.registry import MODELS
from ddetr.utils.errors import ConfigError


@MODELS.register_module()
class FPN(BaseModule):
    """Top-down feature pyramid. Additional coarser levels are subsampled from the coarsest one.

    Args:
        in_channels: Channels of each backbone level.
        out_channels: Output channels, the same at every level.
        num_outs: Number of output levels, at least `len(in_channels)`.
        conv_cfg, norm_cfg, act_cfg: As in mmcv's `ConvModule`.

    Raises:
        ValueError: `num_outs` is smaller than `len(in_channels)`.
        ConfigError: In `forward`: number or channels of the input levels differ from `in_channels`.
    """

    def __init__(
        self,
        in_channels: Sequence[int],
        out_channels: int,
        num_outs: int,
        conv_cfg: dict | None = None,
        norm_cfg: dict | None = None,
        act_cfg: dict | None = None,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        if num_outs < len(in_channels):
            raise ValueError(
                f'num_outs={num_outs} must be at least {len(in_channels)}, the number of in_channels'
            )
        self.in_channels, self.num_outs = list(in_channels), num_outs
        common = {'conv_cfg': conv_cfg, 'norm_cfg': norm_cfg, 'act_cfg': act_cfg}
        self.lateral_convs = nn.ModuleList(ConvModule(c, out_channels, 1, **common) for c in in_channels)
        self.fpn_convs = nn.ModuleList(
            ConvModule(out_channels, out_channels, 3, padding=1, **common) for _ in in_channels
        )
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                xavier_init(module, distribution='uniform')

    def forward(self, feats: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """L_in x (B, C_i, H_i, W_i), finest first -> L x (B, C, H_i, W_i)."""
        if (given := [feat.shape[1] for feat in feats]) != self.in_channels:
            raise ConfigError(
                f'neck.in_channels={self.in_channels}, but the backbone returns {given} channels: correct in_channels.'
            )
        merged = [conv(feat) for conv, feat in zip(self.lateral_convs, feats, strict=True)]
        for i in range(len(merged) - 1, 0, -1):
            merged[i - 1] = merged[i - 1] + F.interpolate(merged[i], size=merged[i - 1].shape[-2:])
        outs = [conv(level) for conv, level in zip(self.fpn_convs, merged, strict=True)]
        while len(outs) < self.num_outs:
            outs.append(F.max_pool2d(outs[-1], kernel_size=1, stride=2))
        return tuple(outs)
