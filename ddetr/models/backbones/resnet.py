"""ResNet (He et al., 2015) and ResNeXt (Xie et al., 2017), built from torchvision's blocks with MMDetection's keys."""

from collections.abc import Sequence
from typing import Any

from mmengine.model import BaseModule
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck

from ddetr.models.checkpointing import checkpointed
from ddetr.registry import MODELS

from .resnet_weights import RESNET

STAGE_BLOCKS: dict[int, tuple[type[BasicBlock] | type[Bottleneck], tuple[int, ...]]] = {
    18: (BasicBlock, (2, 2, 2, 2)),
    34: (BasicBlock, (3, 4, 6, 3)),
    50: (Bottleneck, (3, 4, 6, 3)),
    101: (Bottleneck, (3, 4, 23, 3)),
    152: (Bottleneck, (3, 8, 36, 3)),
}


@MODELS.register_module()
class ResNet(BaseModule):
    """ResNet backbone. Parameter names are torchvision's, so torchvision weights load directly.

    Args:
        depth: 18, 34, 50, 101 or 152.
        in_channels: Number of image channels.
        base_channels: Channels of the stem and of the first stage's inner convolutions (64 in the paper).
        num_stages: Number of stages to build, 1 to 4.
        strides: Stride of each stage.
        dilations: Dilation of each stage's 3x3 convolutions. DC5 is `strides=(1, 2, 2, 1), dilations=(1, 1, 1, 2)`.
            As in torchvision and Carion et al.'s code, the first block of a stage keeps the previous dilation.
        out_indices: Stages (0 to 3) whose outputs are returned, in ascending order.
        style: Placement of a bottleneck's stride: `pytorch` on the 3x3 convolution, `caffe` on the first 1x1.
        frozen_stages: Number of stages to freeze together with the stem; 0 freezes only the stem, -1 nothing.
        norm_cfg: `dict(type='BN', requires_grad=...)`; False freezes the parameters of all batch norms.
        norm_eval: Whether to keep batch norms in eval mode during training, which freezes their statistics.
        zero_init_residual: Whether to initialise each block as the identity.
        with_cp: Whether to save memory by recomputing each block's activations in the backward pass.
        groups: Number of groups of a bottleneck's 3x3 convolution; see `ResNeXt`.
        base_width: Channels per group in the first stage, for `base_channels=64`.
        init_cfg: For example `dict(type='Pretrained', checkpoint='torchvision://resnet50')`.

    Raises:
        ValueError: Unknown depth, style or norm, or inconsistent stage settings.
    """

    weight_family = RESNET

    def __init__(
        self,
        depth: int,
        in_channels: int = 3,
        base_channels: int = 64,
        num_stages: int = 4,
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        out_indices: Sequence[int] = (0, 1, 2, 3),
        style: str = 'pytorch',
        frozen_stages: int = -1,
        norm_cfg: dict | None = None,
        norm_eval: bool = True,
        zero_init_residual: bool = False,
        with_cp: bool = False,
        groups: int = 1,
        base_width: int = 64,
        init_cfg: dict | list[dict] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self._check(depth, num_stages, strides, dilations, out_indices, style, norm_cfg)
        self.out_indices = tuple(out_indices)
        self.frozen_stages = frozen_stages
        self.norm_eval = norm_eval
        self.with_cp = with_cp
        self.norm_requires_grad = (norm_cfg or {}).get('requires_grad', True)

        self.conv1 = nn.Conv2d(in_channels, base_channels, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(base_channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        block, counts = STAGE_BLOCKS[depth]
        channels, dilation, grouped = base_channels, 1, {'groups': groups, 'base_width': base_width}
        self.stages: list[str] = []
        for i in range(num_stages):
            width = base_channels * 2**i
            sizes = channels, width, width * block.expansion
            stage = _stage(block, sizes, counts[i], strides[i], (dilation, dilations[i]), grouped)
            if style == 'caffe' and block is Bottleneck:
                for b in list[Any](stage):
                    b.conv1.stride, b.conv2.stride = b.conv2.stride, b.conv1.stride
            channels, dilation = sizes[-1], dilations[i]
            self.stages.append(f'layer{i + 1}')
            self.add_module(self.stages[-1], stage)
        self.out_channels = [base_channels * 2**i * block.expansion for i in self.out_indices]
        _init_weights(self, zero_init_residual)
        self._freeze()

    @staticmethod
    def _check(depth, num_stages, strides, dilations, out_indices, style, norm_cfg) -> None:
        if depth not in STAGE_BLOCKS:
            raise ValueError(f'ResNet depth={depth} must be one of {tuple(STAGE_BLOCKS)}')
        if not 1 <= num_stages <= 4 or len(strides) < num_stages or len(dilations) < num_stages:
            raise ValueError(
                f'num_stages={num_stages} must be 1 to 4, with as many strides and dilations, got {strides} and '
                f'{dilations}'
            )
        if any(not 0 <= i < num_stages for i in out_indices):
            raise ValueError(f'out_indices={tuple(out_indices)} exceed num_stages={num_stages}')
        if style not in ('pytorch', 'caffe'):
            raise ValueError(f'style={style!r} must be "pytorch" or "caffe"')
        if norm_cfg is not None and norm_cfg.get('type') not in ('BN', 'SyncBN'):
            raise ValueError(f'ResNet supports norm_cfg type BN or SyncBN, got {norm_cfg}')

    def _frozen_parts(self) -> list[nn.Module]:
        stem: list[nn.Module] = [self.conv1, self.bn1] if self.frozen_stages >= 0 else []
        return stem + [getattr(self, name) for name in self.stages[: max(self.frozen_stages, 0)]]

    def _freeze(self) -> None:
        """Disable gradients of the frozen stem and stages, and of batch norms if configured."""
        frozen = self._frozen_parts()
        if not self.norm_requires_grad:
            frozen += [m for m in self.modules() if isinstance(m, nn.BatchNorm2d)]
        for module in frozen:
            module.requires_grad_(False)

    def train(self, mode: bool = True) -> 'ResNet':
        """Set training mode, except for batch norms with fixed statistics (`norm_eval`, frozen stages)."""
        super().train(mode)
        kept = [self] if self.norm_eval else self._frozen_parts()
        for module in (m for part in kept for m in part.modules()) if mode else ():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return self

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """(B, 3, H, W) -> one feature map (B, C_i, H_i, W_i) for each of `out_indices`."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))  # (B, base, H/4, W/4)
        feats = []
        for i, name in enumerate(self.stages):
            for block in getattr(self, name):
                x = checkpointed(block, x) if self.with_cp else block(x)
            if i in self.out_indices:
                feats.append(x)
        return tuple(feats)


@MODELS.register_module()
class ResNeXt(ResNet):
    """ResNet with wider, grouped 3x3 convolutions; names and weights as in torchvision.

    ResNeXt-101 32x4d has `groups=32` and `base_width=4`. Other arguments are those of `ResNet`.
    """

    def __init__(self, depth: int, groups: int = 1, base_width: int = 4, **options) -> None:
        super().__init__(depth, groups=groups, base_width=base_width, **options)


def _stage(
    block: type[BasicBlock] | type[Bottleneck],
    channels: tuple[int, int, int],
    count: int,
    stride: int,
    dilations: tuple[int, int],
    grouped: dict[str, int],
) -> nn.Sequential:
    """Build `count` blocks with (in, inner, out) channels; the first uses `stride` and the first of `dilations`."""
    in_channels, width, out_channels = channels
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False), nn.BatchNorm2d(out_channels)
        )
    blocks = [block(in_channels, width, stride, shortcut, **grouped)]
    blocks += [block(out_channels, width, **grouped) for _ in range(count - 1)]
    for i, b in enumerate(blocks):
        # set on the spatial convolution directly: torchvision does not support dilated basic blocks
        conv: Any = b.conv1 if isinstance(b, BasicBlock) else b.conv2
        conv.dilation = conv.padding = (dilations[min(i, 1)],) * 2
    return nn.Sequential(*blocks)


def _init_weights(model: nn.Module, zero_init_residual: bool) -> None:
    """Kaiming initialisation, as in torchvision."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode='fan_out', nonlinearity='relu')
        elif zero_init_residual and isinstance(module, BasicBlock | Bottleneck):
            nn.init.zeros_((module.bn2 if isinstance(module, BasicBlock) else module.bn3).weight)
