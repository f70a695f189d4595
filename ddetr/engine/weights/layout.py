"""What a set of weights is: the family and the choices in its config that show in its tensors."""

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

DEFORMABLE_DETR = 'Deformable DETR'
DETR = 'DETR'
FASTER_RCNN = 'Faster R-CNN'
RESNET = 'ResNet backbone'

_RESNET_DEPTHS: dict[tuple[int, ...], int] = {
    (2, 2, 2, 2): 18,
    (3, 4, 6, 3): 50,
    (3, 4, 23, 3): 101,
    (3, 8, 36, 3): 152,
}
_QUICKSTART_LAYERS = (2, 3)  # of encoder and decoder; the paper's have 6 of each
_CLASS_BIASES = ('bbox_head.cls_branches.0.bias', 'bbox_head.fc_cls.bias', 'roi_head.bbox_head.fc_cls.bias')


class Layout(NamedTuple):
    """The facts that a config and a weight file must agree on. Zero where a family has no such thing."""

    family: str
    num_classes: int = 0
    num_queries: int = 0  # learned ones
    encoder_layers: int = 0
    decoder_layers: int = 0
    levels: int = 0
    lateral_convs: int = 0  # of the levels, those that come straight from the backbone
    with_box_refine: bool = False
    as_two_stage: bool = False
    neck_bias: bool = False
    depth: int = 0  # of the ResNet

    def __str__(self) -> str:
        if self.family == RESNET:
            return f'a ResNet-{self.depth} backbone'
        parts = [f'{self.family} (ResNet-{self.depth})']
        if self.family == DEFORMABLE_DETR:
            parts.append('one feature level' if self.levels == 1 else f'{self.levels} feature levels')
            parts.append('with box refinement' if self.with_box_refine else 'no box refinement')
            if self.as_two_stage:
                parts.append('two-stage' + (' with mixed query selection' if self.num_queries else ''))
        if self.num_queries:
            parts.append(f'{self.num_queries} queries')
        parts.append(f'{self.num_classes} classes')
        return ', '.join(parts)


def describe(state: Mapping[str, Tensor], with_box_refine: bool | None = None) -> Layout:
    """Read the layout off tensors under our names.

    Box refinement does not show in our names: with it, the layers' box branches differ. Whoever knows better says so.

    Returns:
        The layout; its family is '' if the names are of none of ours.
    """
    depth = _resnet_depth(state)
    family = _family(state)
    if family in ('', RESNET):
        return Layout(family, depth=depth)
    rows = next((state[name].shape[0] for name in _CLASS_BIASES if name in state), 0)
    # the paper's DETR-DC5+ classifies with sigmoids, without a row for no-object
    no_object = family == FASTER_RCNN or (family == DETR and rows != 80)
    queries = state.get('query_embedding.weight')
    lateral = count(state, 'neck.convs.')
    return Layout(
        family,
        num_classes=rows - no_object,
        num_queries=0 if queries is None else queries.shape[0],
        encoder_layers=count(state, 'encoder.layers.'),
        decoder_layers=count(state, 'decoder.layers.'),
        levels=lateral + count(state, 'neck.extra_convs.'),
        lateral_convs=lateral,
        with_box_refine=_branches_differ(state) if with_box_refine is None else with_box_refine,
        as_two_stage='memory_trans_fc.weight' in state,
        neck_bias='neck.convs.0.conv.bias' in state,
        depth=depth,
    )


def fitting_configs(layout: Layout) -> tuple[str, ...]:
    """Our configs that build such a model; several where weights do not tell them apart (DC5 has no weights)."""
    if layout.family == DETR:
        return ('configs/detr/detr_r50_8xb2-150e_coco.py', 'configs/detr/detr-dc5_r50_64xb1-500e_coco.py')
    if layout.family == FASTER_RCNN:
        return ('configs/faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py',)
    mixed = layout.as_two_stage and layout.num_queries
    if mixed and (layout.encoder_layers, layout.decoder_layers) == _QUICKSTART_LAYERS:
        return ('configs/quickstart/deformable-detr-refine-twostage_shapes.py',)
    variant = (layout.levels > 1, layout.with_box_refine, layout.as_two_stage)
    names = {
        (True, False, False): ('',),
        (True, True, False): ('-refine',),
        (True, True, True): ('-refine-twostage',),
        (False, False, False): ('-single-scale', '-single-scale-dc5'),
    }.get(variant, ())
    if layout.family != DEFORMABLE_DETR:
        return ()
    return tuple(f'configs/deformable_detr/deformable-detr{name}_r50_16xb2-50e_coco.py' for name in names)


def count(names: Iterable[str], prefix: str) -> int:
    """How many numbers follow `prefix` in the names: the length of that list of modules."""
    numbers = {match[1] for name in names if (match := re.match(re.escape(prefix) + r'(\d+)\.', name))}
    return len(numbers)


def _family(names: Mapping[str, Tensor]) -> str:
    if 'roi_head.bbox_head.fc_cls.weight' in names:
        return FASTER_RCNN
    if 'encoder.layers.0.self_attn.sampling_offsets.weight' in names:
        return DEFORMABLE_DETR
    if 'encoder.layers.0.self_attn.attn.in_proj_weight' in names:
        return DETR
    return RESNET if 'backbone.layer1.0.conv1.weight' in names else ''


def _resnet_depth(names: Mapping[str, Tensor]) -> int:
    """By its blocks; the last stages may be left out. 0 if they are of no ResNet."""
    blocks = tuple(count(names, f'backbone.layer{stage}.') for stage in (1, 2, 3, 4))
    built = tuple(number for number in blocks if number)
    depth = next(
        (depth for known, depth in _RESNET_DEPTHS.items() if built and known[: len(built)] == built), 0
    )
    if depth == 50 and 'backbone.layer1.0.conv3.weight' not in names:
        return 34  # as many blocks, of two convolutions each
    return depth


def _branches_differ(state: Mapping[str, Tensor]) -> bool:
    """Whether any layer's branches are not just copies of the first layer's, as without refinement."""
    for name, tensor in state.items():
        if match := re.fullmatch(r'bbox_head\.(cls|reg)_branches\.(?!0\.)\d+\.(.+)', name):
            first = state.get(f'bbox_head.{match[1]}_branches.0.{match[2]}')
            if first is None or (first.data_ptr() != tensor.data_ptr() and not torch.equal(first, tensor)):
                return True
    return False
