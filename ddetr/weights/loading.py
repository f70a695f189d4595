"""Load checkpoints in any supported format into a model."""

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from torch import nn

from ddetr.utils.errors import CheckpointError

from .family import WeightFamily, family_of
from .files import WeightsFile, read_weights
from .layout import Layout
from .rules import State


class LoadReport(NamedTuple):
    """Result of loading a file into a model. Names are ddetr's, except `unexpected` names of other formats."""

    path: Path
    title: str  # name of the format
    layout: Layout  # layout of the file
    mapped: int  # number of model tensors loaded from the file
    missing: tuple[str, ...]  # model tensors that keep their values
    unexpected: tuple[str, ...]  # tensors of the file that were not used
    reinitialised: tuple[str, ...]  # class-dependent tensors, for another number of classes
    notes: tuple[str, ...]
    classes: tuple[str, ...] | None  # class names of the file; None if it has none, or after reinitialisation

    def __str__(self) -> str:
        parts = [f'{self.mapped} tensors loaded']
        if self.missing:
            parts.append(f'{len(self.missing)} missing ({_listed(self.missing)})')
        if self.unexpected:
            parts.append(f'{len(self.unexpected)} unexpected ({_listed(self.unexpected)})')
        if self.reinitialised:
            parts.append(f'{len(self.reinitialised)} class tensors reinitialised')
        return f'{self.path}: {self.title}: {self.layout}; {"; ".join([*parts, *self.notes])}'


def load_weights(
    model: nn.Module,
    path: str | Path,
    content: Mapping[str, Any] | None = None,
    *,
    finetune: bool = False,
    allow_partial: bool = False,
) -> LoadReport:
    """Load a checkpoint in any supported format completely, or raise an error. Log a summary and return the report.

    Args:
        model: Unwrapped detector. Without a `weight_family`, tensors are matched by name.
        path: See `read_checkpoint`.
        content: Content of `path`, if already read.
        finetune: Whether to allow a different number of classes. Everything else is loaded, and the tensors named by
            the model's `reset_classes` are reinitialised. For training only, because these are untrained.
        allow_partial: Whether to load only matching tensors, keep the others, and warn.

    Raises:
        CheckpointError: The file is damaged or in an unknown format, belongs to a different model, or has missing or
            unexpected tensors.
    """
    own, family = model.state_dict(), family_of(model)
    file = read_weights(path, content, model)
    weights = file.weights
    state, notes = dict(weights.state), list(weights.notes)
    built = family.layout_of(own, family.hints_from(model)) if family else Layout()
    anew = _fresh_classes(model, own, file, built) if finetune else {}
    if anew:
        state = {name: tensor for name, tensor in state.items() if name not in anew}
        wanted, held = getattr(model, 'num_classes', 0), weights.layout.num_classes
        notes += [f'{wanted} classes instead of {held}'] if held and wanted != held else []
    if family and not allow_partial:
        _refuse_other_model(file, family, built, ignore_classes=bool(anew))
    notes += _settle_optional_zeros(state, own, file)
    # Ignore batch norm counters: frozen norms do not use them, and other projects drop them.
    counters = {name for name in {*own, *state} if name.endswith('.num_batches_tracked')}
    missing = [name for name in own if name not in state.keys() | counters | anew.keys()]
    left_over = [*weights.unexpected, *(name for name in state if name not in own.keys() | counters)]
    misshapen = [name for name in state if name in own and state[name].shape != own[name].shape]
    if not allow_partial:
        shapes = [f'{n}: {tuple(state[n].shape)} instead of {tuple(own[n].shape)}' for n in misshapen]
        _refuse_misfit(file, missing, left_over, shapes)
    fitting = {name: value for name, value in state.items() if name in own and name not in misshapen}
    model.load_state_dict({**fitting, **anew}, strict=False)
    report = LoadReport(
        path=file.path,
        title=weights.title,
        layout=weights.layout,
        mapped=len(fitting),
        missing=(*missing, *misshapen),
        unexpected=tuple(left_over),
        reinitialised=tuple(anew),
        notes=tuple(notes),
        classes=None if anew else file.classes,
    )
    level = logging.WARNING if report.missing or report.unexpected else logging.INFO
    print_log(f'weights: {report}', 'current', level)
    return report


def _fresh_classes(model: Any, own: State, file: WeightsFile, built: Layout) -> State:
    """Newly initialised class-dependent tensors if the file has different classes; empty if they match.

    `reset_classes` is called on a copy, because the optimizer and the process group already hold the parameters.
    """
    state, held = file.weights.state, file.weights.layout
    # K classes with background have the same shapes as K + 1 classes
    relabelled = held.comparable() != built.comparable() and held.comparable(True) == built.comparable(True)
    relabelled &= file.weights.family is not None and file.weights.family is family_of(model)
    misshapen = {name for name in own.keys() & state.keys() if own[name].shape != state[name].shape}
    if not (misshapen or relabelled) or not hasattr(model, 'reset_classes'):
        return {}
    fresh = copy.deepcopy(model)
    names, values = fresh.reset_classes(model.num_classes), fresh.state_dict()
    return {name: values[name] for name in names} if relabelled or misshapen & set(names) else {}


def _refuse_other_model(file: WeightsFile, family: WeightFamily, built: Layout, ignore_classes: bool) -> None:
    """Raise an error that names the matching config if the file belongs to a different model."""
    held, theirs = file.weights.layout.comparable(ignore_classes), file.weights.family
    if theirs is None:
        return  # unknown family: only the names are compared
    says = f'{file.path} contains {file.weights.layout}'
    if theirs.part_of_detector:
        part, strange = theirs.part_of_detector, file.weights.unexpected
        rest = f'and {len(strange)} unknown tensors, such as {strange[0]}' if strange else 'only'
        raise CheckpointError(
            f'{says} {rest}, but the config builds {built}: to load the {part[:-1]}, set '
            f"model.{part}init_cfg=dict(type='Pretrained', checkpoint='{file.path}')."
        )
    if theirs is not family or held != built.comparable(ignore_classes):
        fitting = f'use {held.suggestion()}' if held.fitting_configs() else 'write a config for it'
        raise CheckpointError(f'{says}, but the config builds {built}: {fitting}.')


def _settle_optional_zeros(state: State, own: State, file: WeightsFile) -> list[str]:
    """Add or drop optional zero tensors of the family in place, if this does not change the model."""
    if (family := file.weights.family) is None:
        return []
    title, mine, theirs = family.optional_zeros.title, family.zeros_in(own), family.zeros_in(state)
    if mine and not theirs:
        state |= {name: torch.zeros_like(own[name]) for name in mine}
        return [f'{len(mine)} {title} set to 0, because the file does not contain them']
    if theirs and not mine:
        if any(state[name].any() for name in theirs):
            raise CheckpointError(
                f'{file.path} has non-zero {title}, which the model of this config lacks: set '
                f'{family.optional_zeros.config_key}, as in {file.weights.layout.suggestion()}.'
            )
        for name in theirs:
            del state[name]
        return [f'{len(theirs)} {title} ignored, because they are 0 and the model has none']
    return []


def _refuse_misfit(file: WeightsFile, missing: list[str], left_over: list[str], shapes: list[str]) -> None:
    faults = []
    if missing:
        faults.append(f'lacks {len(missing)} tensors of the model ({_listed(missing)})')
    if left_over:
        faults.append(f'has {len(left_over)} unexpected tensors ({_listed(left_over)})')
    if shapes:
        faults.append(f'has different shapes ({_listed(shapes)})')
    if faults:
        raise CheckpointError(
            f'{file.path} ({file.weights.title}) does not match the model of this config: it {"; it ".join(faults)}. '
            'To load only the matching tensors, use --allow-partial.'
        )


def _listed(names: list[str] | tuple[str, ...], limit: int = 10) -> str:
    more = f', and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
