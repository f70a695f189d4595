"""Convert state dicts between other projects and ddetr, in memory."""

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddetr.utils.errors import CheckpointError

from .classes import EMPTY, num_class_rows, put_class_rows, take_class_rows
from .family import WeightFamily, known_families, recognise
from .huggingface import AS_PUBLISHED, Style, style_of
from .layout import Layout
from .rules import State, to_ours, to_theirs


class Converted(NamedTuple):
    """Weights with ddetr names, and their origin."""

    state: State
    layout: Layout
    project: str  # 'ddetr', or the project of a `WeightFormat`
    title: str  # human-readable name of the format
    family: WeightFamily | None  # None: unknown family, names unchanged
    unexpected: tuple[str, ...] = ()  # source names that are not part of the format
    notes: tuple[str, ...] = ()
    style: Style = AS_PUBLISHED  # style of Hugging Face names, if applicable
    aside: Mapping[str, Tensor] = EMPTY  # unused rows kept for converting back; see `take_class_rows`

    def missing_in_layers(self) -> list[str]:
        """Names that exist only in some layers of a stack, so that they are missing in the others."""
        layers: dict[str, dict[str, set[str]]] = {}  # stack -> layer -> names in it
        stacks = '|'.join(map(re.escape, self.family.stacks if self.family else ()))
        for name in self.state if stacks else ():
            if match := re.fullmatch(rf'({stacks})(\d+)\.(.+)', name):
                layers.setdefault(match[1], {}).setdefault(match[2], set()).add(match[3])
        return [
            f'{stack}{layer}.{name}'
            for stack, members in layers.items()
            for layer, names in members.items()
            for name in sorted(set.union(*members.values()) - names)
        ]


class Origin(NamedTuple):
    """Information about tensors beyond their names and shapes."""

    hints: Mapping[
        str, Any
    ] = {}  # see `WeightFamily`; stored in ddetr files, or `num_classes` from the class names
    style: Style = AS_PUBLISHED  # see `Converted`, also for `aside`; stored in ddetr files
    aside: Mapping[str, Tensor] = EMPTY


UNTOLD = Origin()


def convert_state(
    state: Mapping[str, Tensor],
    coco_ids: bool = True,
    origin: Origin = UNTOLD,
    name: str = 'this state dict',
    families: tuple[WeightFamily, ...] = (),
) -> Converted:
    """Detect the family of a state dict by its names, and rename the tensors.

    Args:
        state: Tensors by name.
        coco_ids: Whether to interpret 91 class rows as COCO category ids and keep those of the 80 classes.
        origin: Additional information about the tensors.
        name: Name of the state dict in error messages.
        families: Families to consider in addition to the registered ones.

    Raises:
        CheckpointError: The names match no known family.
    """
    state, found = dict(state), recognise(state, *families)
    if found is None:
        titles = dict.fromkeys(format.title for family in known_families() for format in family.formats)
        raise CheckpointError(
            f'{name}: its {len(state)} tensor names, such as {next(iter(state), "none")!r}, match no known format '
            f'(ddetr, {", ".join(titles)}).'
        )
    family, format = found
    if format is None:
        ours = {name: tensor for name, tensor in state.items() if name.startswith(family.part_of_detector)}
        strange, layout = tuple(n for n in state if n not in ours), family.layout_of(state, origin.hints)
        mmdet = " or MMDetection's" if family.format('mmdet') else ''
        title = f"ddetr's{mmdet} {family.name}"
        return Converted(ours, layout, 'ddetr', title, family, strange, (), origin.style, origin.aside)
    seen = format.layout_from_theirs(state)
    hints = {**family.hints_from(seen), **origin.hints}
    style = style_of(state) if format.project == 'hf' else AS_PUBLISHED
    renamed = to_ours(state, (format.rules or (lambda *_: ()))(seen, style))
    ours, notes = renamed.state, []
    if renamed.differing:
        notes.append(
            f'{len(renamed.differing)} copies of shared tensors differ, such as {renamed.differing[0]}'
        )
    if renamed.dropped:
        notes.append(f'{", ".join(renamed.dropped)} not needed')
    rows = num_class_rows(ours, family.class_rows)
    proposals = family.proposal_branch(family.layout_of(ours, hints))
    ours, aside = take_class_rows(ours, family.class_rows, format.background, coco_ids, proposals)
    if (kept := num_class_rows(ours, family.class_rows)) < rows:
        notes.append(f'{rows} class rows by COCO id became {kept}')
    layout = family.layout_of(ours, hints)
    ours = format.complete(ours, layout)
    return Converted(
        ours, layout, format.project, format.title, family, renamed.unexpected, tuple(notes), style, aside
    )


def state_for(project: str, weights: Converted, coco: bool, allow_partial: bool = False) -> Converted:
    """Convert ddetr tensors to the names, shapes and duplicates in another project's files.

    Args:
        project: Target project.
        weights: Weights with ddetr names.
        coco: Whether the 80 classes are COCO's, which all other projects except MMDetection index by category id.
        allow_partial: Whether to drop tensors that have no counterpart in the project.

    Raises:
        CheckpointError: The project does not support the model, or some tensors have no counterpart.
    """
    if project == 'ddetr':
        return weights
    family, layout = weights.family, weights.layout
    target = family.format(project) if family else None
    if family is None or target is None:
        name = family.name if family else 'models of an unknown family'
        raise CheckpointError(f'{project} does not support {name}: choose another format.')
    state = target.reduce(weights.state, layout)
    if target.rules is None:
        return _under_our_names(weights._replace(state=state, project=project, title=target.title), family)
    state = {name: tensor for name, tensor in state.items() if not name.endswith('num_batches_tracked')}
    for name, tensor in list(state.items()):  # add missing optional zero tensors
        bias = name.replace('.weight', '.bias')
        if name.endswith('.weight') and family.zeros_in([bias]):
            state.setdefault(bias, tensor.new_zeros(len(tensor)))
    proposals = family.proposal_branch(layout)
    state = put_class_rows(state, family.class_rows, target.background, coco, proposals, weights.aside)
    renamed = to_theirs(state, target.rules(layout, weights.style))
    if renamed.unexpected and not allow_partial:
        raise CheckpointError(
            f'{target.title} has no counterpart for {len(renamed.unexpected)} tensors, such as '
            f'{renamed.unexpected[0]}: this model cannot be written in that format without --allow-partial.'
        )
    return weights._replace(
        state=renamed.state, project=project, title=target.title, unexpected=renamed.unexpected
    )


def _under_our_names(weights: Converted, family: WeightFamily) -> Converted:
    """Adapt to MMDetection: add batch norm counters, drop zero biases that it omits by default."""
    state, notes = dict(weights.state), weights.notes
    for name in weights.state:
        if name.endswith('.running_var'):
            counter = name.replace('running_var', 'num_batches_tracked')
            state.setdefault(counter, torch.zeros((), dtype=torch.long))
    zeros = family.zeros_in(state)
    if any(state[name].any() for name in zeros):
        note = f'the {family.optional_zeros.title} are not 0, but {weights.title} omits them by default: set '
        notes += (f'{note}{family.optional_zeros.config_key} in its config',)
    else:
        state = {name: tensor for name, tensor in state.items() if name not in zeros}
    return weights._replace(state=state, notes=notes)
