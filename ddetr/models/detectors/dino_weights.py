"""Weights of DINO: what they show of the config, and their names in the original (https://github.com/IDEA-Research/DINO).

MMDetection's names are ours.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ddetr.weights import ClassRows, Rule, State, Style, WeightFamily, WeightFormat, count

from .deformable_detr_weights import DEFORMABLE_DETR, layout_from
from .transformer_weights import (
    ORIGINAL_BACKBONE,
    TransformerLayout,
    box_branch_rules,
    branch_rules,
    neck_rules,
    original_decoder_layers,
    original_encoder_layers,
    proposal_rules,
    transformer_facts,
)


@dataclass(frozen=True)
class DINOLayout(TransformerLayout):
    """DINO with 4 or 5 feature levels."""

    levels: int = 0
    lateral_convs: int = 0  # of the levels, those that come straight from the backbone

    def __str__(self) -> str:
        parts = f'{self.levels} feature levels, {self.num_queries} queries, {self.num_classes} classes'
        return f'DINO ({self.backbone.name}), {parts}'

    def fitting_configs(self) -> tuple[str, ...]:
        """Of the published models."""
        return (
            (f'configs/dino/dino-{self.levels}scale_r50_8xb2-12e_coco.py',) if self.levels in (4, 5) else ()
        )

    def config_changes(self, depth: int = 50, num_classes: int = 80) -> dict[str, Any]:
        """Depth, classes and queries, where they are not the config's."""
        changes = super().config_changes(depth, num_classes)
        return changes if self.num_queries in (0, 900) else {**changes, 'model.num_queries': self.num_queries}


def layout_of(state: State, hints: Mapping[str, Any]) -> DINOLayout:
    """Read the layout off tensors under our names."""
    bias, lateral = state.get('bbox_head.cls_branches.0.bias'), count(state, 'neck.convs.')
    return DINOLayout(
        num_classes=0 if bias is None else len(bias),
        levels=lateral + count(state, 'neck.extra_convs.'),
        lateral_convs=lateral,
        **transformer_facts(state),
    )


def layout_from_original(state: State) -> DINOLayout:
    """What chooses the rules, read off the original's names."""
    neck = layout_from(state, '', 'transformer.decoder.')
    layers = count(state, 'transformer.decoder.layers.')
    return DINOLayout(levels=neck.levels, lateral_convs=neck.lateral_convs, decoder_layers=layers)


def original_rules(layout: DINOLayout, style: Style) -> tuple[Rule, ...]:
    """The table; the layers' branches are stored again in the decoder, the proposals' have names of their own."""
    last = str(layout.decoder_layers)
    return (
        *ORIGINAL_BACKBONE,
        *neck_rules('', layout.levels, layout.lateral_convs),
        Rule('transformer.level_embed', 'level_embed'),
        *original_encoder_layers(deformable=True),
        *original_decoder_layers(deformable=True),
        Rule('transformer.decoder.norm.{p}', 'decoder.norm.{p}'),
        Rule('transformer.decoder.ref_point_head.{p}', 'decoder.ref_point_head.{p}'),
        Rule('transformer.tgt_embed.{p}', 'query_embedding.{p}'),
        Rule('label_enc.{p}', 'dn_query_generator.label_embedding.{p}'),
        *proposal_rules('transformer.'),
        # before the layers' branches, whose templates fit the last one's name too
        Rule('transformer.enc_out_class_embed.{p}', f'bbox_head.cls_branches.{last}.{{p}}'),
        *box_branch_rules('transformer.enc_out_bbox_embed', last),
        *(rule for i in range(layout.decoder_layers) for rule in branch_rules('', index=str(i))),
        *(
            rule
            for i in range(layout.decoder_layers)
            for rule in branch_rules('transformer.decoder.', index=str(i))
        ),
    )


DINO_WEIGHTS = WeightFamily(
    name='DINO',
    landmarks=(*DEFORMABLE_DETR.landmarks, 'decoder.ref_point_head.layers.0.weight', 'decoder.norm.weight'),
    layout_of=layout_of,
    class_rows=(
        *DEFORMABLE_DETR.class_rows,
        ClassRows(
            'dn_query_generator.label_embedding.{p}', spare=1
        ),  # the original's unknown class, never used
    ),
    stacks=DEFORMABLE_DETR.stacks,
    optional_zeros=DEFORMABLE_DETR.optional_zeros,
    formats=(
        WeightFormat(
            'original',
            'the original DINO',
            original_rules,
            landmarks=(
                'transformer.level_embed',
                'input_proj.0.0.weight',
                'transformer.decoder.ref_point_head.layers.0.weight',
            ),
            layout_from_theirs=layout_from_original,
        ),
        WeightFormat('mmdet', "MMDetection's DINO"),
    ),
)
