"""What the weights of encoder-decoder detectors share: the names of layers, neck, queries and branches elsewhere.

Original names: https://github.com/facebookresearch/detr, https://github.com/fundamentalvision/Deformable-DETR.
Hugging Face's: transformers, `models/detr` and `models/deformable_detr`.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddetr.weights import Layout, Rule, State, count
from ddetr.weights.huggingface import MULTI_HEAD
from ddetr.weights.rules import within

from ..backbones.resnet_weights import ANOTHER_BACKBONE, ResNetLayout, hf_backbone_config, resnet_layout

_FFN = (Rule('linear1.{p}', 'ffn.layers.0.0.{p}'), Rule('linear2.{p}', 'ffn.layers.1.{p}'))
_HF_FFN = (Rule('fc1.{p}', 'ffn.layers.0.0.{p}'), Rule('fc2.{p}', 'ffn.layers.1.{p}'))

ORIGINAL_BACKBONE = (Rule('backbone.0.body.{p}', 'backbone.{p}'),)


@dataclass(frozen=True)
class TransformerLayout(Layout):
    """What all of them have; see `transformer_facts`."""

    num_queries: int = 0  # learned ones
    encoder_layers: int = 0
    decoder_layers: int = 0
    backbone: ResNetLayout = ANOTHER_BACKBONE

    def config_changes(self, depth: int = 50, num_classes: int = 80) -> dict[str, Any]:
        """Depth and classes, where they are not these of the fitting configs."""
        classes = {'model.bbox_head.num_classes': self.num_classes}
        same = self.num_classes in (0, num_classes)
        return {**self.backbone.config_changes(depth), **({} if same else classes)}


def transformer_facts(state: State) -> dict[str, Any]:
    """The fields of `TransformerLayout` but for the classes, read off tensors under our names."""
    queries = state.get('query_embedding.weight')
    return {
        'num_queries': 0 if queries is None else len(queries),
        'encoder_layers': count(state, 'encoder.layers.'),
        'decoder_layers': count(state, 'decoder.layers.'),
        'backbone': resnet_layout(state),
    }


def original_encoder_layers(deformable: bool) -> tuple[Rule, ...]:
    """The original projects' encoder layers, with deformable attention or not."""
    ours = 'self_attn.{p}' if deformable else 'self_attn.attn.{p}'
    rules = (
        Rule('self_attn.{p}', ours),
        Rule('norm1.{p}', 'norms.0.{p}'),
        *_FFN,
        Rule('norm2.{p}', 'norms.1.{p}'),
    )
    return within('transformer.encoder.layers.{i}.', 'encoder.layers.{i}.', rules)


def original_decoder_layers(deformable: bool) -> tuple[Rule, ...]:
    """The original projects' decoder layers; norm1 follows the first attention in DETR and the second in its heirs."""
    rules = (
        Rule('self_attn.{p}', 'self_attn.attn.{p}'),
        Rule('cross_attn.{p}', 'cross_attn.{p}', written=deformable),
        Rule('multihead_attn.{p}', 'cross_attn.attn.{p}'),
        Rule('norm1.{p}', f'norms.{1 if deformable else 0}.{{p}}'),
        Rule('norm2.{p}', f'norms.{0 if deformable else 1}.{{p}}'),
        *_FFN,
        Rule('norm3.{p}', 'norms.2.{p}'),
    )
    return within('transformer.decoder.layers.{i}.', 'decoder.layers.{i}.', rules)


def hf_encoder_layers(deformable: bool) -> tuple[Rule, ...]:
    """Hugging Face's encoder layers, version 4."""
    rules = (
        *([Rule('self_attn.{p}', 'self_attn.{p}')] if deformable else _multi_head('self_attn', 'self_attn')),
        Rule('self_attn_layer_norm.{p}', 'norms.0.{p}'),
        *_HF_FFN,
        Rule('final_layer_norm.{p}', 'norms.1.{p}'),
    )
    return within('model.encoder.layers.{i}.', 'encoder.layers.{i}.', rules)


def hf_decoder_layers(deformable: bool) -> tuple[Rule, ...]:
    """Hugging Face's decoder layers, version 4."""
    cross = (Rule('encoder_attn.{p}', 'cross_attn.{p}'),)
    rules = (
        *_multi_head('self_attn', 'self_attn'),
        Rule('self_attn_layer_norm.{p}', 'norms.0.{p}'),
        *(cross if deformable else _multi_head('encoder_attn', 'cross_attn')),
        Rule('encoder_attn_layer_norm.{p}', 'norms.1.{p}'),
        *_HF_FFN,
        Rule('final_layer_norm.{p}', 'norms.2.{p}'),
    )
    return within('model.decoder.layers.{i}.', 'decoder.layers.{i}.', rules)


def neck_rules(prefix: str, levels: int, lateral_convs: int) -> tuple[Rule, ...]:
    """Their one list of projections, which we split into the backbone's levels and the extra ones.

    Args:
        prefix: Put before their names.
        levels: Number of feature levels.
        lateral_convs: Of these, those that come straight from the backbone.
    """
    rules: list[Rule] = []
    for level in range(levels):
        extra = level - lateral_convs
        ours = f'neck.convs.{level}' if extra < 0 else f'neck.extra_convs.{extra}'
        rules.append(Rule(f'{prefix}input_proj.{level}.0.{{p}}', f'{ours}.conv.{{p}}'))
        rules.append(Rule(f'{prefix}input_proj.{level}.1.{{p}}', f'{ours}.gn.{{p}}'))
    return tuple(rules)


def proposal_rules(prefix: str) -> tuple[Rule, ...]:
    """The projection of the encoder's memory from which proposals are predicted."""
    return (
        Rule(prefix + 'enc_output.{p}', 'memory_trans_fc.{p}'),
        Rule(prefix + 'enc_output_norm.{p}', 'memory_trans_norm.{p}'),
    )


def branch_rules(
    prefix: str, write_classes: bool = True, write_boxes: bool = True, index: str = '{i}'
) -> tuple[Rule, ...]:
    """Class and box branches, one of each for a decoder layer; `index` names a single one."""
    classes = f'{prefix}class_embed.{index}.{{p}}', f'bbox_head.cls_branches.{index}.{{p}}'
    return (
        Rule(*classes, write_classes),
        *box_branch_rules(f'{prefix}bbox_embed.{index}', index, write_boxes),
    )


def box_branch_rules(theirs: str, index: str, written: bool = True) -> tuple[Rule, ...]:
    """A box branch of three layers; `index` is its number here."""
    return tuple(
        Rule(f'{theirs}.layers.{i}.{{p}}', f'bbox_head.reg_branches.{index}.{2 * i}.{{p}}', written)
        for i in range(3)
    )


def hf_transformer_config(state: State, model_cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    """What the config.json of Hugging Face's DETRs says of backbone and transformer.

    Args:
        state: Tensors under our names.
        model_cfg: `model` of our config; the published models' values without one, since weights do not show them.
    """
    attention = attention_of(model_cfg)
    heads = attention.get('num_heads', 8)
    layers = {part: count(state, f'{part}.layers.') for part in ('encoder', 'decoder')}
    dilations = model_cfg['backbone'].get('dilations', (1,)) if model_cfg else (1,)
    return {
        'd_model': len(state['encoder.layers.0.norms.0.weight']),
        **{f'{part}_layers': number for part, number in layers.items()},
        **{f'{part}_attention_heads': heads for part in layers},
        **{f'{part}_ffn_dim': len(state[f'{part}.layers.0.ffn.layers.0.0.weight']) for part in layers},
        'dilation': tuple(dilations)[-1] == 2,
        'position_embedding_type': 'sine',
        **hf_backbone_config(state, count(state, 'neck.convs.')),
    }


def attention_of(model_cfg: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The encoder's attention in our config; empty without one."""
    return model_cfg['encoder']['layer_cfg']['self_attn_cfg'] if model_cfg else {}


def _multi_head(theirs: str, ours: str) -> tuple[Rule, ...]:
    return within(f'{theirs}.', f'{ours}.', MULTI_HEAD)
