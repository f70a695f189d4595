"""Deformable DETR weights: infer the config from them, and convert to and from other projects.

Original code: https://github.com/fundamentalvision/Deformable-DETR. ddetr uses MMDetection's names.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ddetr.utils.errors import CheckpointError
from ddetr.weights import ClassRows, Layout, OptionalZeros, Rule, State, Style, WeightFamily, WeightFormat
from ddetr.weights.huggingface import in_both_versions
from ddetr.weights.rules import same, table

from ..backbones.resnet_weights import hf_backbone_rules
from . import transformer_weights as shared

_CONFIGS = {  # (several levels, with_box_refine, as_two_stage) -> variant in the config's name
    (True, False, False): ('',),
    (True, True, False): ('-refine',),
    (True, True, True): ('-refine-twostage',),
    (False, False, False): ('-single-scale', '-single-scale-dc5'),  # DC5 has no weights of its own
}


@dataclass(frozen=True)
class DeformableDETRLayout(shared.TransformerLayout):
    """Layout of the paper's five variants, and of the two-stage variant with mixed query selection."""

    with_box_refine: bool = False
    as_two_stage: bool = False

    def __str__(self) -> str:
        stages = 'two-stage with mixed query selection' if self._mixed else 'two-stage'
        parts = (
            f'Deformable DETR ({self.backbone.name})',
            'one feature level' if self.levels == 1 else f'{self.levels} feature levels',
            'with box refinement' if self.with_box_refine else 'no box refinement',
            stages if self.as_two_stage else '',
            f'{self.num_queries} queries' if self.num_queries else '',
            f'{self.num_classes} classes',
        )
        return ', '.join(filter(None, parts))

    def comparable(self, ignore_classes: bool = False) -> Layout:
        """Ignore refinement for single-layer decoders, whose weights do not reveal it."""
        single = self.decoder_layers + self.as_two_stage < 2
        classes = 0 if ignore_classes else self.num_classes
        return replace(self, num_classes=classes, with_box_refine=self.with_box_refine and not single)

    @property
    def _mixed(self) -> bool:
        return self.as_two_stage and self.num_queries > 0

    @property
    def _is_quickstart(self) -> bool:
        return self._mixed and (self.encoder_layers, self.decoder_layers) == (2, 3)

    def fitting_configs(self) -> tuple[str, ...]:
        """Configs of the published models or of the quickstart."""
        if not self.backbone.depth:
            return ()
        if self._is_quickstart:
            return ('configs/quickstart/deformable-detr-refine-twostage_shapes.py',)
        names = _CONFIGS.get((self.levels > 1, self.with_box_refine, self.as_two_stage), ())
        return tuple(f'configs/deformable_detr/deformable-detr{name}_r50_16xb2-50e_coco.py' for name in names)

    def config_changes(self, depth: int = 50, num_classes: int = 80) -> dict[str, Any]:
        """Overrides for depth, classes and mixed query selection where they differ from the config."""
        if self._is_quickstart:
            return super().config_changes(depth=18, num_classes=6)
        mixed = {'model.mixed_query_selection': True} if self._mixed else {}
        return {**super().config_changes(depth, num_classes), **mixed}


def layout_of(state: State, hints: Mapping[str, Any]) -> DeformableDETRLayout:
    """Infer the layout from tensors with ddetr names. Box branches differ between layers with box refinement."""
    refine = hints.get('with_box_refine')
    return DeformableDETRLayout(
        with_box_refine=_branches_differ(state) if refine is None else bool(refine),
        as_two_stage='memory_trans_fc.weight' in state,
        **shared.transformer_facts(state),
    )


def layout_from(state: State, prefix: str, decoder: str) -> DeformableDETRLayout:
    """Infer the layout fields that select the rules from another project's tensors.

    `prefix` and `decoder` are that project's name prefixes of the model and of the decoder.
    """
    return DeformableDETRLayout(
        **shared.their_levels(state, prefix),
        with_box_refine=any(name.startswith(f'{decoder}bbox_embed.') for name in state),
        as_two_stage=any(name.endswith('enc_output.weight') for name in state),
    )


def original_rules(layout: DeformableDETRLayout, style: Style) -> tuple[Rule, ...]:
    """Name rules of the original project. With refinement or two stages, the decoder duplicates the branches."""
    return (
        *shared.ORIGINAL_BACKBONE,
        *shared.neck_rules('', layout),
        *shared.original_layers(deformable=True),
        *_query_rules('transformer.', 'query_embed', layout),
        *shared.branch_rules(''),
        *shared.branch_rules('transformer.decoder.', layout.as_two_stage, layout.with_box_refine),
    )


def hf_rules(layout: DeformableDETRLayout, style: Style) -> tuple[Rule, ...]:
    """Name rules of Hugging Face. The decoder owns the branches used for refinement; duplicates are not stored."""
    rules = (
        *hf_backbone_rules(layout.backbone, style),
        *shared.neck_rules('model.', layout),
        *shared.hf_layers(),
        *_query_rules('model.', 'model.query_position_embeddings', layout),
        *shared.branch_rules('', not layout.as_two_stage, not layout.with_box_refine),
        *shared.branch_rules('model.decoder.', layout.as_two_stage, layout.with_box_refine),
    )
    return in_both_versions(rules, style)


def hf_config(
    layout: DeformableDETRLayout, state: State, model_cfg: Mapping[str, Any] | None
) -> dict[str, Any]:
    """The config.json with which `from_pretrained` builds a matching model.

    Raises:
        CheckpointError: The numbers of heads and points do not match the attention weights.
    """
    attention = shared.attention_of(model_cfg)
    heads, points = attention.get('num_heads', 8), attention.get('num_points', 4)
    proposals = (model_cfg or {}).get('num_queries', 300)
    width = len(state['encoder.layers.0.self_attn.attention_weights.weight'])
    if width != heads * points * layout.levels:
        raise CheckpointError(
            f'the attention has {width} weights per query, which does not match {heads} heads x {points} points x '
            f'{layout.levels} levels: pass the config with --config.'
        )
    return {
        'architectures': ['DeformableDetrForObjectDetection'],
        'model_type': 'deformable_detr',
        **shared.hf_transformer_config(state, model_cfg),
        'num_queries': layout.num_queries or proposals,
        'num_feature_levels': layout.levels,
        'encoder_n_points': points,
        'decoder_n_points': points,
        'with_box_refine': layout.with_box_refine,
        'two_stage': layout.as_two_stage,
        'two_stage_num_proposals': proposals,
    }


def share_branches(state: State, layout: DeformableDETRLayout) -> State:
    """Copy the first layer's branches to layers that share them; Hugging Face stores shared branches once."""
    result = dict(state)
    for name in [name for name in state if re.match(r'bbox_head\.\w+_branches\.0\.', name)]:
        for i in range(1, layout.decoder_layers + layout.as_two_stage):
            result.setdefault(name.replace('.0.', f'.{i}.', 1), state[name])
    return result


def drop_shared_branches(state: State, layout: DeformableDETRLayout) -> State:
    """Drop branches that Hugging Face's model shares; the inverse of `share_branches`.

    Its class branches are tied unless the file stores them, its box branches are tied without refinement.
    """
    kinds = [] if layout.as_two_stage else ['cls'] if layout.with_box_refine else ['cls', 'reg']
    shared = '|'.join(kind for kind in kinds if not _branches_differ(state, kind))
    repeats = re.compile(rf'bbox_head\.({shared})_branches\.(?!0\.)\d+\.')
    return {name: tensor for name, tensor in state.items() if not repeats.match(name)}


def _query_rules(prefix: str, queries: str, layout: DeformableDETRLayout) -> tuple[Rule, ...]:
    """Rules for level embeddings, reference points, proposals and learned queries.

    Other projects have no learned queries in two-stage mode, so they cannot represent mixed query selection.
    """
    modules = {
        'reference_points': 'reference_points_fc',
        **shared.PROPOSALS,
        'pos_trans': 'pos_trans_fc',
        'pos_trans_norm': 'pos_trans_norm',
    }
    learned = {} if layout.as_two_stage else {queries: 'query_embedding'}
    level = Rule(prefix + 'level_embed', 'level_embed')
    return (level, *table(prefix, '', modules), *table('', '', learned))


def _branches_differ(state: State, kind: str = r'\w+') -> bool:
    """Whether the branches of any layer differ from the first layer's, as with refinement."""
    for name, tensor in state.items():
        first = state.get(re.sub(rf'^(bbox_head\.{kind}_branches)\.\d+\.', r'\1.0.', name))
        if first is None or not same(first, tensor):
            return True
    return False


def _without_mixed_queries(state: State, layout: DeformableDETRLayout) -> State:
    if layout._mixed:
        raise CheckpointError(
            'MMDetection has no mixed query selection: this model cannot be converted to its format.'
        )
    return state


DEFORMABLE_DETR = WeightFamily(
    name='Deformable DETR',
    landmarks=(
        'encoder.layers.0.self_attn.sampling_offsets.weight',
        'decoder.layers.0.cross_attn.sampling_offsets.weight',
    ),
    layout_of=layout_of,
    hints=('with_box_refine',),
    class_rows=(ClassRows('bbox_head.cls_branches.{i}.{p}'),),
    # class-agnostic proposals are trained with label 0 and ranked by that row only
    proposal_branch=lambda layout: (
        f'bbox_head.cls_branches.{layout.decoder_layers}.' if layout.as_two_stage else ''
    ),
    stacks=('encoder.layers.', 'decoder.layers.', 'bbox_head.cls_branches.', 'bbox_head.reg_branches.'),
    optional_zeros=OptionalZeros(
        'biases of the neck',
        ('neck.convs.{i}.conv.bias', 'neck.extra_convs.{i}.conv.bias'),
        'model.neck.bias=True',
    ),
    formats=(
        WeightFormat(
            'original',
            'the original Deformable DETR',
            original_rules,
            landmarks=('transformer.level_embed', 'input_proj.0.0.weight'),
            layout_from_theirs=lambda state: layout_from(state, '', 'transformer.decoder.'),
        ),
        WeightFormat('mmdet', "MMDetection's Deformable DETR", reduce=_without_mixed_queries),
        WeightFormat(
            'hf',
            "Hugging Face's Deformable DETR",
            hf_rules,
            landmarks=('model.level_embed', 'model.input_proj.0.0.weight'),
            layout_from_theirs=lambda state: layout_from(state, 'model.', 'model.decoder.'),
            complete=share_branches,
            reduce=drop_shared_branches,
            config_json=hf_config,
        ),
    ),
)
