"""The formats that are read, and how each is recognised by its names."""

from collections.abc import Callable
from typing import NamedTuple

from . import huggingface, original, torchvision
from .classes import Background
from .huggingface import Style
from .layout import DEFORMABLE_DETR, DETR, FASTER_RCNN, RESNET, Layout, count
from .rules import Rule, State


class Format(NamedTuple):
    """Another project's way to store one family."""

    project: str
    title: str
    family: str
    landmarks: tuple[str, ...]  # names that together occur in no other format
    background: Background  # where its class rows have no-object
    rules: Callable[[Layout, Style], tuple[Rule, ...]]


FORMATS = (
    Format(
        'original',
        'the original Deformable DETR',
        DEFORMABLE_DETR,
        ('transformer.level_embed', 'input_proj.0.0.weight'),
        'none',
        lambda layout, _: original.deformable_detr_rules(layout),
    ),
    Format(
        'original',
        'the original DETR',
        DETR,
        ('transformer.encoder.layers.0.self_attn.in_proj_weight', 'bbox_embed.layers.0.weight'),
        'last',
        lambda *_: original.DETR_RULES,
    ),
    Format(
        'hf',
        "Hugging Face's Deformable DETR",
        DEFORMABLE_DETR,
        ('model.level_embed', 'model.input_proj.0.0.weight'),
        'none',
        huggingface.deformable_detr_rules,
    ),
    Format(
        'hf',
        "Hugging Face's DETR",
        DETR,
        ('class_labels_classifier.weight', 'model.input_projection.weight'),
        'last',
        lambda _, style: huggingface.detr_rules(style),
    ),
    Format(
        'torchvision',
        "torchvision's Faster R-CNN",
        FASTER_RCNN,
        ('roi_heads.box_head.fc6.weight', 'rpn.head.cls_logits.weight'),
        'first',
        lambda *_: torchvision.FASTER_RCNN_RULES,
    ),
    Format(
        'torchvision',
        "torchvision's ResNet",
        RESNET,
        ('conv1.weight', 'layer4.0.conv1.weight'),
        'none',
        lambda *_: torchvision.RESNET_RULES,
    ),
)


def recognise(state: State) -> Format | None:
    """The format whose landmarks are all there; None for our own names and for unknown ones."""
    return next((f for f in FORMATS if all(name in state for name in f.landmarks)), None)


def format_of(project: str, family: str) -> Format | None:
    """How a project stores a family, if it has it."""
    return next((f for f in FORMATS if (f.project, f.family) == (project, family)), None)


def layout_from_theirs(found: Format, state: State) -> Layout:
    """What must be known to choose the rules and cannot be told from our names, read off theirs."""
    prefix = 'model.' if found.project == 'hf' else ''
    decoder = 'model.decoder.' if found.project == 'hf' else 'transformer.decoder.'
    return Layout(
        found.family,
        levels=count(state, prefix + 'input_proj.'),
        lateral_convs=_count_1x1(state, prefix + 'input_proj.'),
        with_box_refine=any(name.startswith(decoder + 'bbox_embed.') for name in state),
        as_two_stage=any(name.endswith('enc_output.weight') for name in state),
    )


def _count_1x1(state: State, prefix: str) -> int:
    kernels = [t for name, t in state.items() if name.startswith(prefix) and name.endswith('.0.weight')]
    return sum(kernel.shape[-1] == 1 for kernel in kernels)
