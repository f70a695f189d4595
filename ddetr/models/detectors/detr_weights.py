"""DETR weights: infer the config from them, and convert to and from other projects.

Original code: https://github.com/facebookresearch/detr. ddetr uses MMDetection's names.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from ddetr.weights import ClassRows, Rule, State, Style, WeightFamily, WeightFormat
from ddetr.weights.huggingface import in_both_versions
from ddetr.weights.rules import table

from ..backbones.resnet_weights import hf_backbone_rules
from . import transformer_weights as shared


@dataclass(frozen=True)
class DETRLayout(shared.TransformerLayout):
    """Layout of DETR, with or without DC5, which does not change the weights."""

    sigmoid: bool = False  # no row for "no object", as in DETR-DC5+ of Deformable DETR's table 1

    def __str__(self) -> str:
        classes = f'{self.num_classes} classes{" by sigmoid" if self.sigmoid else ""}'
        return f'DETR ({self.backbone.name}), {self.num_queries} queries, {classes}'

    def comparable(self, ignore_classes: bool = False) -> 'DETRLayout':
        """Ignore the type of loss together with the classes: fine-tuning may change both."""
        return replace(self, num_classes=0, sigmoid=False) if ignore_classes else self

    def fitting_configs(self) -> tuple[str, ...]:
        """Configs of the published models or of DETR-DC5+."""
        if not self.backbone.depth:
            return ()
        if self.sigmoid:
            return ('configs/detr/detr-dc5-plus_r50_16xb2-50e_coco.py',)
        return ('configs/detr/detr_r50_8xb2-150e_coco.py', 'configs/detr/detr-dc5_r50_64xb1-500e_coco.py')


def layout_of(state: State, hints: Mapping[str, Any]) -> DETRLayout:
    """Infer the layout from tensors with ddetr names.

    K + 1 class rows mean K classes with softmax or K + 1 with sigmoid. `hints['num_classes']`, taken from the
    checkpoint or from the model to load into, decides. Without it softmax is assumed, as in the models published by
    the original project and MMDetection.
    """
    layout = DETRLayout(**shared.transformer_facts(state, 'bbox_head.fc_cls.bias'))
    rows, sigmoid = layout.num_classes, hints.get('num_classes') == layout.num_classes
    return replace(layout, num_classes=rows if sigmoid else max(rows - 1, 0), sigmoid=sigmoid)


def original_rules(layout: DETRLayout, style: Style) -> tuple[Rule, ...]:
    """Name rules of the original project."""
    return (
        *shared.ORIGINAL_BACKBONE,
        *shared.original_layers(deformable=False),
        *_rules('input_proj', 'transformer.decoder.norm', 'query_embed', 'class_embed', 'bbox_embed'),
    )


def hf_rules(layout: DETRLayout, style: Style) -> tuple[Rule, ...]:
    """Name rules of Hugging Face."""
    names = ('model.input_projection', 'model.decoder.layernorm', 'model.query_position_embeddings')
    rules = (*shared.hf_layers(), *_rules(*names, 'class_labels_classifier', 'bbox_predictor'))
    return in_both_versions((*hf_backbone_rules(layout.backbone, style), *rules), style)


def hf_config(layout: DETRLayout, state: State, model_cfg: Mapping[str, Any] | None) -> dict[str, Any]:
    """The config.json with which `from_pretrained` builds a matching model."""
    return {
        'architectures': ['DetrForObjectDetection'],
        'model_type': 'detr',
        **shared.hf_transformer_config(state, model_cfg),
        'num_queries': layout.num_queries,
    }


def _rules(neck: str, norm: str, queries: str, classes: str, boxes: str) -> tuple[Rule, ...]:
    modules = {
        neck: 'neck.convs.0.conv',
        norm: 'decoder.post_norm',
        queries: 'query_embedding',
        classes: 'bbox_head.fc_cls',
        f'{boxes}.layers.0': 'bbox_head.reg_ffn.layers.0.0',
        f'{boxes}.layers.1': 'bbox_head.reg_ffn.layers.1',
        f'{boxes}.layers.2': 'bbox_head.fc_reg',
    }
    return table('', '', modules)


DETR = WeightFamily(
    name='DETR',
    landmarks=(
        'encoder.layers.0.self_attn.attn.in_proj_weight',
        'decoder.layers.0.cross_attn.attn.in_proj_weight',
    ),
    layout_of=layout_of,
    hints=('num_classes',),
    class_rows=(ClassRows('bbox_head.fc_cls.{p}', background=True),),
    stacks=('encoder.layers.', 'decoder.layers.'),
    formats=(
        WeightFormat(
            'original',
            'the original DETR',
            original_rules,
            landmarks=('transformer.encoder.layers.0.self_attn.in_proj_weight', 'bbox_embed.layers.0.weight'),
            background='last',
        ),
        WeightFormat('mmdet', "MMDetection's DETR"),
        WeightFormat(
            'hf',
            "Hugging Face's DETR",
            hf_rules,
            landmarks=('class_labels_classifier.weight', 'model.input_projection.weight'),
            background='last',
            layout_from_theirs=lambda _: DETRLayout(),
            config_json=hf_config,
        ),
    ),
)
