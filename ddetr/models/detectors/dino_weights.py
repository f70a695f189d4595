"""DINO weights: infer the config from them, and convert to and from the original project.

Original code: https://github.com/IDEA-Research/DINO. ddetr uses MMDetection's names.
"""

from dataclasses import dataclass
from typing import Any

from ddetr.weights import ClassRows, Rule, State, Style, WeightFamily, WeightFormat, count
from ddetr.weights.rules import table

from . import transformer_weights as shared
from .deformable_detr_weights import DEFORMABLE_DETR


@dataclass(frozen=True)
class DINOLayout(shared.TransformerLayout):
    """Layout of DINO with 4 or 5 feature levels."""

    def __str__(self) -> str:
        parts = f'{self.levels} feature levels, {self.num_queries} queries, {self.num_classes} classes'
        return f'DINO ({self.backbone.name}), {parts}'

    def fitting_configs(self) -> tuple[str, ...]:
        """Configs of the published models."""
        published = self.levels in (4, 5) and self.backbone.depth
        return (f'configs/dino/dino-{self.levels}scale_r50_8xb2-12e_coco.py',) if published else ()

    def config_changes(self, depth: int = 50, num_classes: int = 80) -> dict[str, Any]:
        """Overrides for depth, classes and queries where they differ from the config."""
        changes = super().config_changes(depth, num_classes)
        return changes if self.num_queries in (0, 900) else {**changes, 'model.num_queries': self.num_queries}


def layout_from_original(state: State) -> DINOLayout:
    """Infer the layout fields that select the rules from the original project's tensors."""
    layers = count(state, 'transformer.decoder.layers.')
    return DINOLayout(decoder_layers=layers, **shared.their_levels(state))


def original_rules(layout: DINOLayout, style: Style) -> tuple[Rule, ...]:
    """Name rules of the original project. The decoder duplicates the branches; the proposal branches are separate."""
    last = str(layout.decoder_layers)
    modules = {
        'decoder.norm': 'decoder.norm',
        'decoder.ref_point_head': 'decoder.ref_point_head',
        'tgt_embed': 'query_embedding',
        **shared.PROPOSALS,
        'enc_out_class_embed': f'bbox_head.cls_branches.{last}',
    }
    return (
        *shared.ORIGINAL_BACKBONE,
        *shared.neck_rules('', layout),
        Rule('transformer.level_embed', 'level_embed'),
        *shared.original_layers(deformable=True),
        *table('transformer.', '', modules),
        Rule('label_enc.{p}', 'dn_query_generator.label_embedding.{p}'),
        *shared.box_branch_rules('transformer.enc_out_bbox_embed', last),
        *(
            rule
            for prefix in ('', 'transformer.decoder.')
            for i in range(layout.decoder_layers)
            for rule in shared.branch_rules(prefix, index=str(i))
        ),
    )


DINO_WEIGHTS = WeightFamily(
    name='DINO',
    landmarks=(*DEFORMABLE_DETR.landmarks, 'decoder.ref_point_head.layers.0.weight', 'decoder.norm.weight'),
    layout_of=lambda state, hints: DINOLayout(**shared.transformer_facts(state)),
    class_rows=(
        *DEFORMABLE_DETR.class_rows,
        # the original's extra "unknown" class, never used
        ClassRows('dn_query_generator.label_embedding.{p}', spare=1),
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
