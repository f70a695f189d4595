"""ResNet backbone weights: detect the depth, and map names from torchvision and Hugging Face.

In a ddetr detector the names are torchvision's (and timm's) with the prefix `backbone.`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ddetr.utils.errors import CheckpointError
from ddetr.weights import Layout, Rule, State, Style, WeightFamily, WeightFormat, count
from ddetr.weights.rules import table

_DEPTHS: dict[tuple[int, ...], int] = {
    (2, 2, 2, 2): 18,
    (3, 4, 6, 3): 50,
    (3, 4, 23, 3): 101,
    (3, 8, 36, 3): 152,
}
_PARTS = ('conv1', 'bn1', 'layer1', 'layer2', 'layer3', 'layer4')
_TORCHVISION = (
    *table('', 'backbone.', {part: part for part in _PARTS}),
    Rule('fc.{p}', ''),
)  # fc: ImageNet classifier, unused


@dataclass(frozen=True)
class ResNetLayout(Layout):
    """Backbone of a detector. Only ResNets are described in detail."""

    depth: int = 0  # 0: not a ResNet
    stem_width: int = field(default=0, compare=False)  # 64, or less in narrow ResNets

    def __str__(self) -> str:
        return f'a {self.name} backbone' if self.depth else self.name

    @property
    def name(self) -> str:
        """`ResNet-50`, or "another backbone"."""
        return f'ResNet-{self.depth}' if self.depth else 'another backbone'

    def config_changes(self, depth: int = 50) -> dict[str, Any]:
        """Config override for the depth, if it differs from that of the matching config."""
        return {} if self.depth in (0, depth) else {'model.backbone.depth': self.depth}


ANOTHER_BACKBONE = ResNetLayout()


def resnet_layout(state: State, hints: Mapping[str, Any] | None = None) -> ResNetLayout:
    """Infer the depth from the number of blocks per stage; the last stages may be missing."""
    blocks = tuple(count(state, f'backbone.layer{stage}.') for stage in (1, 2, 3, 4))
    built = tuple(number for number in blocks if number)
    depth = next((depth for known, depth in _DEPTHS.items() if built and known[: len(built)] == built), 0)
    if depth == 50 and 'backbone.layer1.0.conv3.weight' not in state:
        depth = 34  # same number of blocks, but with two convolutions each
    stem, kernel = len(state.get('backbone.conv1.weight', ())), state.get('backbone.layer1.0.conv2.weight')
    if kernel is not None and stem and kernel.shape[:2] != (stem, stem):
        depth = 0  # ResNeXt, or a wide ResNet
    return ResNetLayout(depth=depth, stem_width=stem)


def hf_backbone_rules(backbone: ResNetLayout, style: Style) -> tuple[Rule, ...]:
    """Name rules for Hugging Face models with timm's ResNet or, for other widths than 64, Hugging Face's own."""
    at = 'model.backbone.conv_encoder.model.'
    own = style.hf_resnet or backbone.stem_width != 64
    layers = [('embedder.embedder', 'conv1', 'bn1')]
    for stage in range(4):
        block, ours = f'encoder.stages.{stage}.layers.{{i}}', f'layer{stage + 1}.{{i}}'
        layers.append((f'{block}.shortcut', f'{ours}.downsample.0', f'{ours}.downsample.1'))
        layers += [(f'{block}.layer.{k}', f'{ours}.conv{k + 1}', f'{ours}.bn{k + 1}') for k in range(3)]
    modules = {f'{theirs}.convolution': conv for theirs, conv, _ in layers}
    modules |= {f'{theirs}.normalization': norm for theirs, _, norm in layers}
    return (*table(at, 'backbone.', modules, own), Rule(at + '{p}', 'backbone.{p}', written=not own))


def hf_backbone_config(state: State, num_levels: int) -> dict[str, Any]:
    """Backbone section of Hugging Face's config.json, using the last `num_levels` stages."""
    backbone = resnet_layout(state)
    if not backbone.depth and backbone.stem_width in (0, 64):
        raise CheckpointError('Hugging Face models do not support this backbone: choose another format.')
    if backbone.stem_width == 64:
        name = f'resnet{backbone.depth}'
        return {'use_timm_backbone': True, 'backbone': name, 'use_pretrained_backbone': False}
    basic, stages = 'backbone.layer1.0.conv3.weight' not in state, (1, 2, 3, 4)
    config = {
        'model_type': 'resnet',
        'embedding_size': backbone.stem_width,
        'hidden_sizes': [len(state[f'backbone.layer{i}.0.conv{2 if basic else 3}.weight']) for i in stages],
        'depths': [count(state, f'backbone.layer{i}.') for i in stages],
        'layer_type': 'basic' if basic else 'bottleneck',
        'out_features': [f'stage{i}' for i in (2, 3, 4)[-max(num_levels, 1) :]],
    }
    return {'use_timm_backbone': False, 'backbone_config': config}


RESNET = WeightFamily(
    name='ResNet backbone',
    landmarks=('backbone.layer1.0.conv1.weight',),
    layout_of=resnet_layout,
    part_of_detector='backbone.',
    formats=(
        WeightFormat('mmdet', "MMDetection's ResNet backbone"),
        WeightFormat(
            'torchvision',
            "torchvision's ResNet",
            lambda *_: _TORCHVISION,
            landmarks=('conv1.weight', 'layer4.0.conv1.weight'),
        ),
    ),
)
