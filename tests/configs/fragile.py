"""A backbone that breaks on one image, for tests of the black box: the one whose upper left corner is white."""

import torch
from torch import nn

from ddetr.models.backbones import ResNet
from ddetr.registry import MODELS


class Fragile(nn.Module):
    """Passes features through; those of rows in `white` become NaN, or their gradients do, or they are divided by 0."""

    def __init__(self, breaks: str) -> None:
        super().__init__()
        self.breaks = breaks

    def forward(self, features, white):
        rows = []
        for row, bad in zip(features, white.tolist(), strict=True):
            if bad and self.breaks == 'output':
                row = row * torch.nan
            elif bad and self.breaks == 'gradient':
                row = row + (row * 0).sqrt()  # 0, but its gradient is 0 * infinity
            rows.append(row)
        return torch.stack(rows)


@MODELS.register_module()
class FragileResNet(ResNet):
    """A ResNet with a `Fragile` after its last stage."""

    def __init__(self, breaks: str, **kwargs) -> None:
        super().__init__(**kwargs)
        self.fragile = Fragile(breaks)

    def forward(self, images):
        *features, last = super().forward(images)
        white = (images[:, :, :12, :12] > 2).flatten(1).all(1)
        return (*features, self.fragile(last, white))
