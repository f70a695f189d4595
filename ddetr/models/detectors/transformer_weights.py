"""Name rules shared by encoder-decoder detectors: layers, neck, queries and branches in other projects.

Original names: https://github.com/facebookresearch/detr, https://github.com/fundamentalvision/Deformable-DETR.
Hugging Face names: transformers 4, `models/detr` and `models/deformable_detr`.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddetr.weights import Layout, Rule, State, count
from ddetr.weights.rules import table, within

from ..backbones.resnet_weights import ANOTHER_BACKBONE, ResNetLayout, hf_backbone_config, resnet_layout

ORIGINAL_BACKBONE = table('', '', {'backbone.0.body': 'backbone'})
# projection of the encoder memory from which proposals are predicted
PROPOSALS = {'enc_output': 'memory_trans_fc', 'enc_output_norm': 'memory_trans_norm'}

_DEFORMABLE = ('sampling_offsets', 'attention_weights', 'value_proj', 'output_proj')
_ATTENTION = (
    Rule('in_proj_{p}', 'attn.in_proj_{p}'),
    Rule('out_proj.{p}', 'attn.out_proj.{p}'),
    *table('', '', {name: name for name in _DEFORMABLE}),
)
# Hugging Face stores q, k and v as three tensors, ddetr as one
_HF_ATTENTION = (Rule('{qkv}_proj.{p}', 'attn.in_proj_{p}'), *_ATTENTION[1:])
_FFN = {'linear1': 'ffn.layers.0.0', 'linear2': 'ffn.layers.1'}
_HF_FFN = {'fc1': 'ffn.layers.0.0', 'fc2': 'ffn.layers.1'}


@dataclass(frozen=True)
class TransformerLayout(Layout):
    """Layout fields common to encoder-decoder detectors; see `transformer_facts`."""

    num_queries: int = 0  # number of learned queries
    encoder_layers: int = 0
    decoder_layers: int = 0
    levels: int = 0
    lateral_convs: int = 0  # number of levels taken directly from the backbone
    backbone: ResNetLayout = ANOTHER_BACKBONE

    def config_changes(self, depth: int = 50, num_classes: int = 80) -> dict[str, Any]:
        """Overrides for depth and classes where they differ from the matching config."""
        classes = {'model.bbox_head.num_classes': self.num_classes}
        same = self.num_classes in (0, num_classes)
        return {**self.backbone.config_changes(depth), **({} if same else classes)}


def transformer_facts(state: State, class_bias: str = 'bbox_head.cls_branches.0.bias') -> dict[str, Any]:
    """Infer the fields of `TransformerLayout` from tensors with ddetr names; `num_classes` counts class rows."""
    lateral = count(state, 'neck.convs.')
    return {
        'num_classes': len(state.get(class_bias, ())),
        'num_queries': len(state.get('query_embedding.weight', ())),
        'encoder_layers': count(state, 'encoder.layers.'),
        'decoder_layers': count(state, 'decoder.layers.'),
        'levels': lateral + count(state, 'neck.extra_convs.'),
        'lateral_convs': lateral,
        'backbone': resnet_layout(state),
    }


def their_levels(state: State, prefix: str = '') -> dict[str, Any]:
    """Infer `levels` and `lateral_convs` from another project's tensors."""
    projection = re.compile(rf'{re.escape(prefix)}input_proj\.\d+\.0\.weight')
    kernels = [tensor for name, tensor in state.items() if projection.fullmatch(name)]
    return {'levels': len(kernels), 'lateral_convs': sum(kernel.shape[-1] == 1 for kernel in kernels)}


def original_layers(deformable: bool) -> tuple[Rule, ...]:
    """Layer rules of the original projects.

    The decoder's norm1 follows self-attention in DETR and cross-attention in its successors.
    """
    cross, first, second = ('cross_attn', 1, 0) if deformable else ('multihead_attn', 0, 1)
    norms = {'norm1': f'norms.{first}', 'norm2': f'norms.{second}', 'norm3': 'norms.2'}
    return (
        *_layers(
            'transformer.',
            'encoder',
            ('self_attn',),
            _ATTENTION,
            {'norm1': 'norms.0', 'norm2': 'norms.1', **_FFN},
        ),
        *_layers('transformer.', 'decoder', ('self_attn', cross), _ATTENTION, {**norms, **_FFN}),
    )


def hf_layers() -> tuple[Rule, ...]:
    """Layer rules of Hugging Face."""
    rules: list[Rule] = []
    for part, attentions in (('encoder', ('self_attn',)), ('decoder', ('self_attn', 'encoder_attn'))):
        norms = [f'{name}_layer_norm' for name in attentions] + ['final_layer_norm']
        modules = {**{norm: f'norms.{i}' for i, norm in enumerate(norms)}, **_HF_FFN}
        rules += _layers('model.', part, attentions, _HF_ATTENTION, modules)
    return tuple(rules)


def _layers(
    prefix: str,
    part: str,
    attentions: tuple[str, ...],
    attention: tuple[Rule, ...],
    modules: Mapping[str, str],
) -> tuple[Rule, ...]:
    theirs, ours = f'{prefix}{part}.layers.{{i}}.', f'{part}.layers.{{i}}.'
    rules = table(theirs, ours, modules)
    for name, own in zip(attentions, ('self_attn', 'cross_attn'), strict=False):
        rules += within(f'{theirs}{name}.', f'{ours}{own}.', attention)
    return rules


def neck_rules(prefix: str, layout: TransformerLayout) -> tuple[Rule, ...]:
    """Neck rules: ddetr splits the other projects' list of projections into lateral and extra convolutions."""
    rules: tuple[Rule, ...] = ()
    for level in range(layout.levels):
        extra = level - layout.lateral_convs
        ours = f'neck.convs.{level}.' if extra < 0 else f'neck.extra_convs.{extra}.'
        rules += table(f'{prefix}input_proj.{level}.', ours, {'0': 'conv', '1': 'gn'})
    return rules


def branch_rules(
    prefix: str, write_classes: bool = True, write_boxes: bool = True, index: str = '{i}'
) -> tuple[Rule, ...]:
    """Rules for the class and box branches of all decoder layers, or of the layer `index`."""
    classes = {f'class_embed.{index}': f'cls_branches.{index}'}
    return (
        *table(prefix, 'bbox_head.', classes, write_classes),
        *box_branch_rules(f'{prefix}bbox_embed.{index}', index, write_boxes),
    )


def box_branch_rules(theirs: str, index: str, written: bool = True) -> tuple[Rule, ...]:
    """Rules for a three-layer box branch; `index` is its index in ddetr."""
    layers = {str(i): str(2 * i) for i in range(3)}
    return table(f'{theirs}.layers.', f'bbox_head.reg_branches.{index}.', layers, written)


def hf_transformer_config(state: State, model_cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    """Backbone and transformer section of the config.json of Hugging Face's DETR models.

    `model_cfg` is `model` in the ddetr config. Without it, values that the weights do not determine are those of the
    published models.
    """
    heads = attention_of(model_cfg).get('num_heads', 8)
    dilations = model_cfg['backbone'].get('dilations', (1,)) if model_cfg else (1,)
    parts: dict[str, Any] = {}
    for part in ('encoder', 'decoder'):
        parts[f'{part}_layers'] = count(state, f'{part}.layers.')
        parts[f'{part}_attention_heads'] = heads
        parts[f'{part}_ffn_dim'] = len(state[f'{part}.layers.0.ffn.layers.0.0.weight'])
    return {
        'd_model': len(state['encoder.layers.0.norms.0.weight']),
        **parts,
        'dilation': tuple(dilations)[-1] == 2,
        'position_embedding_type': 'sine',
        **hf_backbone_config(state, count(state, 'neck.convs.')),
    }


def attention_of(model_cfg: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """Config of the encoder's attention; empty without `model_cfg`."""
    return model_cfg['encoder']['layer_cfg']['self_attn_cfg'] if model_cfg else {}
