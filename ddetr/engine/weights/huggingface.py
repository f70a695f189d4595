"""Names and `config.json` of Hugging Face transformers' `DeformableDetrForObjectDetection`, `DetrForObjectDetection`.

`save_pretrained` writes the names of version 4, which every version reads. Version 5's modules have other names, and
the backbone has timm's (which are torchvision's) or those of Hugging Face's own ResNet. All of them are read.
"""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch

from .layout import DEFORMABLE_DETR, Layout
from .original import branch_rules, neck_rules, query_rules
from .rules import Rule, State

_LAYERS = (
    Rule('layers.{i}.self_attn_layer_norm.{p}', 'layers.{i}.norms.0.{p}'),
    Rule('layers.{i}.fc1.{p}', 'layers.{i}.ffn.layers.0.0.{p}'),
    Rule('layers.{i}.fc2.{p}', 'layers.{i}.ffn.layers.1.{p}'),
)
_ENCODER_LAYERS = (*_LAYERS, Rule('layers.{i}.final_layer_norm.{p}', 'layers.{i}.norms.1.{p}'))
_DECODER_LAYERS = (
    *_LAYERS,
    Rule('layers.{i}.encoder_attn_layer_norm.{p}', 'layers.{i}.norms.1.{p}'),
    Rule('layers.{i}.final_layer_norm.{p}', 'layers.{i}.norms.2.{p}'),
)
_MULTI_HEAD = (
    Rule('{qkv}_proj.{p}', 'attn.in_proj_{p}'),
    Rule('out_proj.{p}', 'attn.out_proj.{p}'),
)


class Style(NamedTuple):
    """Which of Hugging Face's names a file uses."""

    version_5: bool = False
    hf_resnet: bool = False


AS_PUBLISHED = Style()


class Unseen(NamedTuple):
    """What a model needs beside its weights, which do not show it."""

    num_heads: int = 8
    num_points: int = 4
    num_proposals: int = 300  # of the two-stage variant
    dilation: bool = False  # DC5


USUAL = Unseen()


def unseen_in(model_cfg: Mapping[str, Any]) -> Unseen:
    """What a config of ours (its `model`) says of it."""
    attention = model_cfg['encoder']['layer_cfg']['self_attn_cfg']
    return Unseen(
        num_heads=attention.get('num_heads', 8),
        num_points=attention.get('num_points', 4),
        num_proposals=model_cfg.get('num_queries', 300),
        dilation=tuple(model_cfg['backbone'].get('dilations', (1,)))[-1] == 2,
    )


def style_of(state: State) -> Style:
    """The style in which these names are written."""
    return Style(
        version_5='model.encoder.layers.0.mlp.fc1.weight' in state,
        hf_resnet=any('.embedder.embedder.' in name for name in state),
    )


def style_for(state: State) -> Style:
    """The style to write our tensors in: timm builds no ResNet of another width than 64."""
    return Style(hf_resnet=state['backbone.conv1.weight'].shape[0] != 64)


def deformable_detr_rules(layout: Layout, style: Style = AS_PUBLISHED) -> tuple[Rule, ...]:
    """The table of one variant. The decoder owns what it refines with, and repeats are not stored."""
    table = (
        *_backbone_rules(style),
        *neck_rules('model.', layout),
        Rule('model.level_embed', 'level_embed'),
        *_within('model.encoder.', 'encoder.', _ENCODER_LAYERS),
        Rule('model.encoder.layers.{i}.self_attn.{p}', 'encoder.layers.{i}.self_attn.{p}'),
        *_within('model.decoder.', 'decoder.', _DECODER_LAYERS),
        *_within('model.decoder.layers.{i}.self_attn.', 'decoder.layers.{i}.self_attn.', _MULTI_HEAD),
        Rule('model.decoder.layers.{i}.encoder_attn.{p}', 'decoder.layers.{i}.cross_attn.{p}'),
        Rule('model.reference_points.{p}', 'reference_points_fc.{p}'),
        Rule('model.enc_output.{p}', 'memory_trans_fc.{p}'),
        Rule('model.enc_output_norm.{p}', 'memory_trans_norm.{p}'),
        Rule('model.pos_trans.{p}', 'pos_trans_fc.{p}'),
        Rule('model.pos_trans_norm.{p}', 'pos_trans_norm.{p}'),
        *query_rules('model.query_position_embeddings.{p}', layout),
        *branch_rules('', not layout.as_two_stage, not layout.with_box_refine),
        *branch_rules('model.decoder.', layout.as_two_stage, layout.with_box_refine),
    )
    return _in_both_versions(table, style)


def detr_rules(style: Style = AS_PUBLISHED) -> tuple[Rule, ...]:
    """DETR's table."""
    table = (
        *_backbone_rules(style),
        Rule('model.input_projection.{p}', 'neck.convs.0.conv.{p}'),
        *_within('model.encoder.', 'encoder.', _ENCODER_LAYERS),
        *_within('model.encoder.layers.{i}.self_attn.', 'encoder.layers.{i}.self_attn.', _MULTI_HEAD),
        *_within('model.decoder.', 'decoder.', _DECODER_LAYERS),
        *_within('model.decoder.layers.{i}.self_attn.', 'decoder.layers.{i}.self_attn.', _MULTI_HEAD),
        *_within('model.decoder.layers.{i}.encoder_attn.', 'decoder.layers.{i}.cross_attn.', _MULTI_HEAD),
        Rule('model.decoder.layernorm.{p}', 'decoder.post_norm.{p}'),
        Rule('model.query_position_embeddings.{p}', 'query_embedding.{p}'),
        Rule('class_labels_classifier.{p}', 'bbox_head.fc_cls.{p}'),
        Rule('bbox_predictor.layers.0.{p}', 'bbox_head.reg_ffn.layers.0.0.{p}'),
        Rule('bbox_predictor.layers.1.{p}', 'bbox_head.reg_ffn.layers.1.{p}'),
        Rule('bbox_predictor.layers.2.{p}', 'bbox_head.fc_reg.{p}'),
    )
    return _in_both_versions(table, style)


def share_branches(state: State, layout: Layout) -> State:
    """Fill in the branches of layers that share the first one's, which is stored once."""
    result = dict(state)
    for name, tensor in state.items():
        for kind in ('cls', 'reg'):
            if name.startswith(f'bbox_head.{kind}_branches.0.'):
                for i in range(1, layout.decoder_layers + layout.as_two_stage):
                    result.setdefault(name.replace('_branches.0.', f'_branches.{i}.'), tensor)
    return result


def drop_shared_branches(state: State, layout: Layout) -> State:
    """Leave out what `share_branches` fills in, where Hugging Face's model shares it.

    Its class branches are tied unless the file says otherwise by storing them, its box branches without refinement.
    """
    result = dict(state)
    kinds = [] if layout.as_two_stage else ['cls'] if layout.with_box_refine else ['cls', 'reg']
    for kind in kinds:
        repeats = {name for name in state if name.startswith(f'bbox_head.{kind}_branches.')}
        firsts = {name for name in repeats if name.startswith(f'bbox_head.{kind}_branches.0.')}
        repeats -= firsts
        if all(torch.equal(state[name], state[_first_of(name)]) for name in repeats):
            result = {name: tensor for name, tensor in result.items() if name not in repeats}
    return result


def config_json(layout: Layout, state: State, names: Sequence[str], unseen: Unseen) -> dict[str, Any]:
    """The `config.json` with which `from_pretrained` builds the model of these tensors (under our names).

    Args:
        names: of the written class rows, without DETR's no-object.
        unseen: what the tensors do not show.
    """
    deformable = layout.family == DEFORMABLE_DETR
    common = {
        'architectures': ['DeformableDetrForObjectDetection' if deformable else 'DetrForObjectDetection'],
        'model_type': 'deformable_detr' if deformable else 'detr',
        'd_model': state['encoder.layers.0.norms.0.weight'].shape[0],
        'encoder_layers': layout.encoder_layers,
        'decoder_layers': layout.decoder_layers,
        'encoder_attention_heads': unseen.num_heads,
        'decoder_attention_heads': unseen.num_heads,
        'encoder_ffn_dim': state['encoder.layers.0.ffn.layers.0.0.weight'].shape[0],
        'decoder_ffn_dim': state['decoder.layers.0.ffn.layers.0.0.weight'].shape[0],
        'num_queries': layout.num_queries or unseen.num_proposals,
        'dilation': unseen.dilation,
        'position_embedding_type': 'sine',
        'id2label': {str(i): name for i, name in enumerate(names)},
        'label2id': {name: i for i, name in enumerate(names)},
        **_backbone_config(layout, state),
    }
    if not deformable:
        return common
    return {
        **common,
        'num_feature_levels': layout.levels,
        'encoder_n_points': unseen.num_points,
        'decoder_n_points': unseen.num_points,
        'with_box_refine': layout.with_box_refine,
        'two_stage': layout.as_two_stage,
        'two_stage_num_proposals': unseen.num_proposals,
    }


def _backbone_config(layout: Layout, state: State) -> dict[str, Any]:
    if not style_for(state).hf_resnet:
        return {
            'use_timm_backbone': True,
            'backbone': f'resnet{layout.depth}',
            'use_pretrained_backbone': False,
        }
    out_stages = (2, 3, 4)[-max(layout.lateral_convs, 1) :]
    basic = 'backbone.layer1.0.conv3.weight' not in state
    widths = [state[f'backbone.layer{i}.0.conv{2 if basic else 3}.weight'].shape[0] for i in (1, 2, 3, 4)]
    depths = [sum(f'backbone.layer{i}.{j}.conv1.weight' in state for j in range(99)) for i in (1, 2, 3, 4)]
    return {
        'use_timm_backbone': False,
        'backbone_config': {
            'model_type': 'resnet',
            'embedding_size': state['backbone.conv1.weight'].shape[0],
            'hidden_sizes': widths,
            'depths': depths,
            'layer_type': 'basic' if basic else 'bottleneck',
            'out_features': [f'stage{i}' for i in out_stages],
        },
    }


def _within(theirs: str, ours: str, rules: Sequence[Rule]) -> tuple[Rule, ...]:
    return tuple(Rule(theirs + rule.theirs, ours + rule.ours) for rule in rules)


def _backbone_rules(style: Style) -> tuple[Rule, ...]:
    at = 'model.backbone.conv_encoder.model.'
    hf_resnet = [
        Rule(at + 'embedder.embedder.convolution.{p}', 'backbone.conv1.{p}'),
        Rule(at + 'embedder.embedder.normalization.{p}', 'backbone.bn1.{p}'),
    ]
    for stage in range(4):
        block, ours = at + f'encoder.stages.{stage}.layers.{{i}}.', f'backbone.layer{stage + 1}.{{i}}.'
        hf_resnet.append(Rule(block + 'shortcut.convolution.{p}', ours + 'downsample.0.{p}'))
        hf_resnet.append(Rule(block + 'shortcut.normalization.{p}', ours + 'downsample.1.{p}'))
        for k in range(3):
            hf_resnet.append(Rule(block + f'layer.{k}.convolution.{{p}}', ours + f'conv{k + 1}.{{p}}'))
            hf_resnet.append(Rule(block + f'layer.{k}.normalization.{{p}}', ours + f'bn{k + 1}.{{p}}'))
    return (
        *(rule._replace(written=style.hf_resnet) for rule in hf_resnet),
        Rule(at + '{p}', 'backbone.{p}', written=not style.hf_resnet),
    )


def _in_both_versions(table: Sequence[Rule], style: Style) -> tuple[Rule, ...]:
    new = [rule._replace(theirs=_version_5_name(rule.theirs)) for rule in table]
    return (
        *(rule._replace(written=rule.written and style.version_5) for rule in new),
        *(rule._replace(written=rule.written and not style.version_5) for rule in table),
    )


def _version_5_name(theirs: str) -> str:
    name = theirs.replace('.backbone.conv_encoder.', '.backbone.')
    name = name.replace('.fc1.', '.mlp.fc1.').replace('.fc2.', '.mlp.fc2.')
    return name.replace('.out_proj.', '.o_proj.')


def _first_of(name: str) -> str:
    head, _, tail = name.partition('_branches.')
    return f'{head}_branches.0.{tail.split(".", 1)[1]}'
