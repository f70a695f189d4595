"""Weights of the ResNet backbone: torchvision's names, Hugging Face's names, its depth.

Inside a detector of ours its names begin with `backbone.`; after that they are torchvision's, as are timm's.
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
)  # fc: ImageNet's classes


@dataclass(frozen=True)
class ResNetLayout(Layout):
    """A detector's backbone; of another one than ResNet only that it is one."""

    depth: int = 0  # 0: another backbone
    stem_width: int = field(default=0, compare=False)  # 64, but for narrow ones

    def __str__(self) -> str:
        return f'a {self.name} backbone' if self.depth else self.name

    @property
    def name(self) -> str:
        """`ResNet-50`, or "another backbone"."""
        return f'ResNet-{self.depth}' if self.depth else 'another backbone'

    def config_changes(self, depth: int = 50) -> dict[str, Any]:
        """The depth, where it is not that of the fitting configs."""
        return {} if self.depth in (0, depth) else {'model.backbone.depth': self.depth}


ANOTHER_BACKBONE = ResNetLayout()


def resnet_layout(state: State, hints: Mapping[str, Any] | None = None) -> ResNetLayout:
    """The depth, by the number of blocks; the last stages may be left out."""
    blocks = tuple(count(state, f'backbone.layer{stage}.') for stage in (1, 2, 3, 4))
    built = tuple(number for number in blocks if number)
    depth = next((depth for known, depth in _DEPTHS.items() if built and known[: len(built)] == built), 0)
    if depth == 50 and 'backbone.layer1.0.conv3.weight' not in state:
        depth = 34  # as many blocks, of two convolutions each
    stem, kernel = len(state.get('backbone.conv1.weight', ())), state.get('backbone.layer1.0.conv2.weight')
    if kernel is not None and stem and kernel.shape[:2] != (stem, stem):
        depth = 0  # ResNeXt, or a wide ResNet
    return ResNetLayout(depth=depth, stem_width=stem)


def hf_backbone_rules(backbone: ResNetLayout, style: Style) -> tuple[Rule, ...]:
    """The table of a Hugging Face model with timm's ResNet, or its own: timm builds none of another width than 64."""
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
    """The backbone's part of Hugging Face's config.json; `num_levels` of its last stages are used."""
    backbone = resnet_layout(state)
    if not backbone.depth and backbone.stem_width in (0, 64):
        raise CheckpointError("Hugging Face's models have no such backbone: choose another format.")
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
