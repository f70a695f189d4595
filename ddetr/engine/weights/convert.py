"""From another project's tensors to ours and back, in memory."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from ...utils.errors import CheckpointError
from .classes import EMPTY, is_class_row, proposal_branch, put_class_rows, take_class_rows
from .formats import FORMATS, format_of, layout_from_theirs, recognise
from .huggingface import AS_PUBLISHED, Style, drop_shared_branches, share_branches, style_of
from .layout import DEFORMABLE_DETR, RESNET, Layout, describe
from .rules import State, to_ours, to_theirs

PROJECTS = ('ddetr', 'original', 'mmdet', 'hf')


class Converted(NamedTuple):
    """Weights under our names, and where they came from."""

    state: State
    layout: Layout
    project: str  # one of PROJECTS, or 'torchvision'
    title: str  # of the format, for people
    unexpected: tuple[str, ...] = ()  # the source's names that its format does not have
    notes: tuple[str, ...] = ()
    style: Style = AS_PUBLISHED  # of Hugging Face's names, where they were
    aside: Mapping[str, Tensor] = EMPTY  # rows that we have no use for but give back: see `take_class_rows`


class Origin(NamedTuple):
    """What a file of ours remembers about the file that it was made from, as its names do not show it."""

    with_box_refine: bool | None = None
    style: Style = AS_PUBLISHED
    aside: Mapping[str, Tensor] = EMPTY


UNTOLD = Origin()


def convert_state(
    state: Mapping[str, Tensor],
    coco_ids: bool = True,
    origin: Origin = UNTOLD,
    name: str = 'this state dict',
) -> Converted:
    """Recognise a state dict by its names and give it ours.

    Args:
        state: of the original DETR or Deformable DETR, MMDetection 3.x, Hugging Face, torchvision, or ours.
        coco_ids: take 91 class rows (92 in DETR) for COCO's category ids and keep those of the 80 classes.
        origin: as found in a file of ours.
        name: of the source, for the error.

    Raises:
        CheckpointError: the names are of no known format.
    """
    state = _without_wrapper_prefix(state)
    found = recognise(state)
    if found is None:
        return _own_names(state, origin, name)
    seen = layout_from_theirs(found, state)
    style = style_of(state) if found.project == 'hf' else AS_PUBLISHED
    renamed = to_ours(state, found.rules(seen, style))
    ours, notes = renamed.state, []
    if renamed.differing:
        notes.append(
            f'{len(renamed.differing)} copies of shared tensors differ, such as {renamed.differing[0]}'
        )
    if renamed.dropped:
        notes.append(f'{", ".join(renamed.dropped)} not needed')
    rows = _num_class_rows(ours)
    proposals = proposal_branch(describe(ours, seen.with_box_refine))
    ours, aside = take_class_rows(ours, found.background, coco_ids, proposals)
    if _num_class_rows(ours) < rows:
        notes.append(f'{rows} class rows by COCO id became {_num_class_rows(ours)}')
    layout = describe(ours, seen.with_box_refine)
    if found.project == 'hf' and found.family == DEFORMABLE_DETR:
        ours = share_branches(ours, layout)
    return Converted(ours, layout, found.project, found.title, renamed.unexpected, tuple(notes), style, aside)


def state_for(project: str, weights: Converted, coco: bool, allow_partial: bool = False) -> Converted:
    """Give our tensors another project's names, shapes and repetitions: what its own files hold.

    Args:
        project: one of `PROJECTS`, or 'torchvision'.
        weights: under our names.
        coco: the 80 classes are COCO's, which the other projects (but MMDetection) number by category id.
        allow_partial: leave out tensors that the project has no place for.

    Raises:
        CheckpointError: the project has no such model, or no place for some of its tensors.
    """
    layout, state = weights.layout, weights.state
    if project == 'ddetr':
        return weights
    if project == 'mmdet':
        return _for_mmdet(weights)
    target = format_of(project, layout.family)
    if target is None:
        raise CheckpointError(
            f'{project} has no {layout.family or "model of these names"}: choose another format.'
        )
    state = _with_neck_biases(state) if layout.family == DEFORMABLE_DETR else state
    state = {name: tensor for name, tensor in state.items() if not name.endswith('num_batches_tracked')}
    if project == 'hf':
        state = drop_shared_branches(state, layout)
    state = put_class_rows(state, target.background, coco, proposal_branch(layout), weights.aside)
    renamed = to_theirs(state, target.rules(layout, weights.style))
    if renamed.unexpected and not allow_partial:
        raise CheckpointError(
            f'{target.title} has no place for {len(renamed.unexpected)} of the tensors, such as '
            f'{renamed.unexpected[0]}: this model cannot be written in that format (without --allow-partial).'
        )
    return weights._replace(
        state=renamed.state, project=project, title=target.title, unexpected=renamed.unexpected
    )


def missing_in_layers(state: Mapping[str, Tensor]) -> list[str]:
    """Names that some layers of a stack have and others lack: what is missing, as far as it shows without a model."""
    stacks: dict[str, dict[str, set[str]]] = {}  # stack -> layer -> names in it
    for name in state:
        if match := re.fullmatch(
            r'((?:encoder|decoder)\.layers\.|bbox_head\.\w+_branches\.)(\d+)\.(.+)', name
        ):
            stacks.setdefault(match[1], {}).setdefault(match[2], set()).add(match[3])
    return [
        f'{stack}{layer}.{name}'
        for stack, layers in stacks.items()
        for layer, names in layers.items()
        for name in sorted(set.union(*layers.values()) - names)
    ]


def neck_biases(state: Mapping[str, Tensor]) -> list[str]:
    """The names of the biases of Deformable DETR's neck, which MMDetection leaves out as a norm follows."""
    return [
        name
        for name in state
        if name.startswith(('neck.convs.', 'neck.extra_convs.')) and name.endswith('.conv.bias')
    ]


def _own_names(state: State, origin: Origin, name: str) -> Converted:
    layout = describe(state, origin.with_box_refine)
    if not layout.family:
        known = ', '.join(dict.fromkeys(f.title for f in FORMATS))
        raise CheckpointError(
            f'{name}: its {len(state)} names, such as {next(iter(state), "none")!r}, are of no known format '
            f'(ddetr, MMDetection 3.x, {known}).'
        )
    project = 'mmdet' if layout.family == DEFORMABLE_DETR and not layout.neck_bias else 'ddetr'
    title = f"ddetr's or MMDetection's {layout.family}"
    strange = tuple(key for key in state if layout.family == RESNET and not key.startswith('backbone.'))
    ours = {key: tensor for key, tensor in state.items() if key not in strange}
    return Converted(ours, layout, project, title, strange, style=origin.style, aside=origin.aside)


def _for_mmdet(weights: Converted) -> Converted:
    """MMDetection's names are ours; it stores batch norms' counters, and the neck has no biases."""
    state, notes = dict(weights.state), []
    if weights.layout.as_two_stage and weights.layout.num_queries:
        raise CheckpointError(
            'MMDetection has no mixed query selection: this model cannot be written in its format.'
        )
    for name in weights.state:
        if name.endswith('.running_var'):
            counter = name.replace('running_var', 'num_batches_tracked')
            state.setdefault(counter, torch.zeros((), dtype=torch.long))
    biases = neck_biases(state) if weights.layout.family == DEFORMABLE_DETR else []
    if biases and all(not state[name].any() for name in biases):
        state = {name: tensor for name, tensor in state.items() if name not in biases}
    elif biases:
        notes.append(
            f"the neck's convolutions have biases, which {weights.layout.family} in MMDetection leaves out by "
            'default: set model.neck.bias=True in its config'
        )
    title = f"MMDetection's {weights.layout.family}"
    return weights._replace(state=state, project='mmdet', title=title, notes=(*weights.notes, *notes))


def _with_neck_biases(state: State) -> State:
    result = dict(state)
    for name, tensor in state.items():
        if name.startswith(('neck.convs.', 'neck.extra_convs.')) and name.endswith('.conv.weight'):
            result.setdefault(name.replace('.weight', '.bias'), tensor.new_zeros(tensor.shape[0]))
    return result


def _without_wrapper_prefix(state: Mapping[str, Tensor]) -> State:
    """Drop the `module.` of a model saved inside its data-parallel wrapper."""
    if state and all(name.startswith('module.') for name in state):
        return {name.removeprefix('module.'): tensor for name, tensor in state.items()}
    return dict(state)


def _num_class_rows(state: State) -> int:
    return next((t.shape[0] for name, t in state.items() if is_class_row(name) and '.fc_reg.' not in name), 0)
