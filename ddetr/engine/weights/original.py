"""Names of the original Deformable DETR (fundamentalvision) and of the original DETR (facebookresearch)."""

from .layout import Layout
from .rules import Rule

_BACKBONE = (Rule('backbone.0.body.{p}', 'backbone.{p}'),)

_DEFORMABLE_TRANSFORMER = (
    Rule('transformer.level_embed', 'level_embed'),
    Rule('transformer.encoder.layers.{i}.self_attn.{p}', 'encoder.layers.{i}.self_attn.{p}'),
    Rule('transformer.encoder.layers.{i}.norm1.{p}', 'encoder.layers.{i}.norms.0.{p}'),
    Rule('transformer.encoder.layers.{i}.linear1.{p}', 'encoder.layers.{i}.ffn.layers.0.0.{p}'),
    Rule('transformer.encoder.layers.{i}.linear2.{p}', 'encoder.layers.{i}.ffn.layers.1.{p}'),
    Rule('transformer.encoder.layers.{i}.norm2.{p}', 'encoder.layers.{i}.norms.1.{p}'),
    # norm1 follows the cross attention, which comes second
    Rule('transformer.decoder.layers.{i}.cross_attn.{p}', 'decoder.layers.{i}.cross_attn.{p}'),
    Rule('transformer.decoder.layers.{i}.norm1.{p}', 'decoder.layers.{i}.norms.1.{p}'),
    Rule('transformer.decoder.layers.{i}.self_attn.{p}', 'decoder.layers.{i}.self_attn.attn.{p}'),
    Rule('transformer.decoder.layers.{i}.norm2.{p}', 'decoder.layers.{i}.norms.0.{p}'),
    Rule('transformer.decoder.layers.{i}.linear1.{p}', 'decoder.layers.{i}.ffn.layers.0.0.{p}'),
    Rule('transformer.decoder.layers.{i}.linear2.{p}', 'decoder.layers.{i}.ffn.layers.1.{p}'),
    Rule('transformer.decoder.layers.{i}.norm3.{p}', 'decoder.layers.{i}.norms.2.{p}'),
    Rule('transformer.reference_points.{p}', 'reference_points_fc.{p}'),
    Rule('transformer.enc_output.{p}', 'memory_trans_fc.{p}'),
    Rule('transformer.enc_output_norm.{p}', 'memory_trans_norm.{p}'),
    Rule('transformer.pos_trans.{p}', 'pos_trans_fc.{p}'),
    Rule('transformer.pos_trans_norm.{p}', 'pos_trans_norm.{p}'),
)

DETR_RULES = (
    *_BACKBONE,
    Rule('input_proj.{p}', 'neck.convs.0.conv.{p}'),
    Rule('transformer.encoder.layers.{i}.self_attn.{p}', 'encoder.layers.{i}.self_attn.attn.{p}'),
    Rule('transformer.encoder.layers.{i}.norm1.{p}', 'encoder.layers.{i}.norms.0.{p}'),
    Rule('transformer.encoder.layers.{i}.linear1.{p}', 'encoder.layers.{i}.ffn.layers.0.0.{p}'),
    Rule('transformer.encoder.layers.{i}.linear2.{p}', 'encoder.layers.{i}.ffn.layers.1.{p}'),
    Rule('transformer.encoder.layers.{i}.norm2.{p}', 'encoder.layers.{i}.norms.1.{p}'),
    Rule('transformer.decoder.layers.{i}.self_attn.{p}', 'decoder.layers.{i}.self_attn.attn.{p}'),
    Rule('transformer.decoder.layers.{i}.norm1.{p}', 'decoder.layers.{i}.norms.0.{p}'),
    Rule('transformer.decoder.layers.{i}.multihead_attn.{p}', 'decoder.layers.{i}.cross_attn.attn.{p}'),
    Rule('transformer.decoder.layers.{i}.norm2.{p}', 'decoder.layers.{i}.norms.1.{p}'),
    Rule('transformer.decoder.layers.{i}.linear1.{p}', 'decoder.layers.{i}.ffn.layers.0.0.{p}'),
    Rule('transformer.decoder.layers.{i}.linear2.{p}', 'decoder.layers.{i}.ffn.layers.1.{p}'),
    Rule('transformer.decoder.layers.{i}.norm3.{p}', 'decoder.layers.{i}.norms.2.{p}'),
    Rule('transformer.decoder.norm.{p}', 'decoder.post_norm.{p}'),
    Rule('query_embed.{p}', 'query_embedding.{p}'),
    Rule('class_embed.{p}', 'bbox_head.fc_cls.{p}'),
    Rule('bbox_embed.layers.0.{p}', 'bbox_head.reg_ffn.layers.0.0.{p}'),
    Rule('bbox_embed.layers.1.{p}', 'bbox_head.reg_ffn.layers.1.{p}'),
    Rule('bbox_embed.layers.2.{p}', 'bbox_head.fc_reg.{p}'),
)


def deformable_detr_rules(layout: Layout) -> tuple[Rule, ...]:
    """The table for one variant: with refinement and two stages the branches are stored again in the decoder."""
    return (
        *_BACKBONE,
        *neck_rules('', layout),
        *_DEFORMABLE_TRANSFORMER,
        *query_rules('query_embed.{p}', layout),
        *branch_rules('', True, True),
        *branch_rules('transformer.decoder.', layout.as_two_stage, layout.with_box_refine),
    )


def query_rules(theirs: str, layout: Layout) -> tuple[Rule, ...]:
    """Learned queries. Other projects have none in two stages, so our mixed query selection has no place there."""
    return () if layout.as_two_stage else (Rule(theirs, 'query_embedding.{p}'),)


def neck_rules(prefix: str, layout: Layout) -> tuple[Rule, ...]:
    """Their one list of projections, which we split into the backbone's levels and the extra ones."""
    rules: list[Rule] = []
    for level in range(layout.levels):
        extra = level - layout.lateral_convs
        ours = f'neck.convs.{level}' if extra < 0 else f'neck.extra_convs.{extra}'
        rules.append(Rule(f'{prefix}input_proj.{level}.0.{{p}}', f'{ours}.conv.{{p}}'))
        rules.append(Rule(f'{prefix}input_proj.{level}.1.{{p}}', f'{ours}.gn.{{p}}'))
    return tuple(rules)


def branch_rules(prefix: str, write_classes: bool, write_boxes: bool) -> tuple[Rule, ...]:
    """Class and box branches of Deformable DETR, under `prefix`."""
    return (
        Rule(prefix + 'class_embed.{i}.{p}', 'bbox_head.cls_branches.{i}.{p}', write_classes),
        Rule(prefix + 'bbox_embed.{i}.layers.0.{p}', 'bbox_head.reg_branches.{i}.0.{p}', write_boxes),
        Rule(prefix + 'bbox_embed.{i}.layers.1.{p}', 'bbox_head.reg_branches.{i}.2.{p}', write_boxes),
        Rule(prefix + 'bbox_embed.{i}.layers.2.{p}', 'bbox_head.reg_branches.{i}.4.{p}', write_boxes),
    )
