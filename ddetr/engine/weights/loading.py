"""Loading a weight file of any known format into one of our models."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.logging import print_log
from mmengine.model import bias_init_with_prob
from torch import nn

from ...utils.errors import CheckpointError
from .classes import is_class_row
from .convert import neck_biases
from .files import WeightsFile, interpret, read_content
from .layout import DEFORMABLE_DETR, RESNET, Layout, describe, fitting_configs
from .rules import State

_FOCAL_PRIOR = 0.01  # Deformable DETR starts every class at this probability (RetinaNet, section 3.3)


class LoadReport(NamedTuple):
    """What came of loading a file into a model. All names are ours, but for `unexpected` ones of other formats."""

    path: Path
    title: str  # of the format
    layout: Layout  # of the file
    mapped: int  # tensors of the model that were taken from the file
    missing: tuple[str, ...]  # the model's, which keep their values
    unexpected: tuple[str, ...]  # the file's, which were not used
    reinitialised: tuple[str, ...]  # class rows for another number of classes
    notes: tuple[str, ...]
    classes: (
        tuple[str, ...] | None
    )  # as the file names them; None if it does not, or if they were reinitialised

    def __str__(self) -> str:
        parts = [f'{self.mapped} tensors loaded']
        if self.missing:
            parts.append(f'{len(self.missing)} missing ({_listed(self.missing)})')
        if self.unexpected:
            parts.append(f'{len(self.unexpected)} left over ({_listed(self.unexpected)})')
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
    """Load a weight file of any known format, all of it or nothing, and print one line about it.

    Args:
        model: one of our detectors, not wrapped.
        path: see `read_weights`.
        content: what `path` holds, if it was read already.
        finetune: with another number of classes than the file's, take everything else and start the classification
            branches anew. For training only: a detector with such branches knows no class yet.
        allow_partial: take what fits, leave the rest as it is, and warn.

    Returns:
        What was done.

    Raises:
        CheckpointError: the file is of no known format or damaged; it is of another model than the config's; names
            are missing or left over.
    """
    own = model.state_dict()
    built = describe(own, getattr(model, 'with_box_refine', None))
    # a model with as many classes as COCO has category ids means these rows as they are
    content = read_content(path) if content is None else content
    file = interpret(content, Path(path), coco_ids=built.num_classes not in (90, 91))
    weights = file.weights
    # a copy: what is read once may be asked about again
    state, notes = dict(weights.state), list(weights.notes)

    anew: list[str] = []
    if finetune and built.num_classes != weights.layout.num_classes and weights.layout.num_classes:
        anew = [name for name in own if is_class_row(name)]
        state = {name: tensor for name, tensor in state.items() if not is_class_row(name)}
        notes.append(f'{built.num_classes} classes instead of {weights.layout.num_classes}')
    if not allow_partial:
        _refuse_other_model(file, built, ignore_classes=bool(anew))
    notes += _settle_neck_biases(state, own, file)
    state, missing, unexpected, shapes = _sort_out(state, own, anew)
    unexpected = [*weights.unexpected, *unexpected]
    if (missing or unexpected or shapes) and not allow_partial:
        raise CheckpointError(_misfit(file, missing, unexpected, shapes))
    model.load_state_dict(state, strict=False)
    reinitialise_classes(model, anew)
    report = LoadReport(
        path=file.path,
        title=weights.title,
        layout=weights.layout,
        mapped=len(state),
        missing=(*missing, *(name for name, _ in shapes)),
        unexpected=tuple(unexpected),
        reinitialised=tuple(anew),
        notes=tuple(notes),
        classes=None if anew else file.classes,
    )
    partial = report.missing or report.unexpected
    print_log(f'weights: {report}', 'current', logging.WARNING if partial else logging.INFO)
    return report


@torch.no_grad()
def reinitialise_classes(model: nn.Module, names: list[str]) -> None:
    """Start classification layers anew: auxiliary and encoder branches too, sigmoid ones with the focal prior.

    Args:
        model: whose layers they are.
        names: of their weights and biases.
    """
    head: Any = getattr(model, 'bbox_head', None)
    for name in dict.fromkeys(name.rpartition('.')[0] for name in names):
        layer = model.get_submodule(name)
        assert isinstance(layer, nn.Linear)
        layer.reset_parameters()
        if name.startswith('roi_head.'):  # Faster R-CNN, section 3.3: small Gaussians
            nn.init.normal_(layer.weight, std=0.01 if name.endswith('fc_cls') else 0.001)
            nn.init.zeros_(layer.bias)
        elif all(getattr(term, 'use_sigmoid', True) for term in head.criterion.terms):
            nn.init.constant_(layer.bias, bias_init_with_prob(_FOCAL_PRIOR))


def _refuse_other_model(file: WeightsFile, built: Layout, ignore_classes: bool) -> None:
    """Say in one sentence that file and config are of different models, and which config fits."""
    held = file.weights.layout
    if not built.family:
        return  # somebody's own model: its names decide
    if held.family == RESNET:
        strange = file.weights.unexpected
        rest = f'and {len(strange)} tensors of no known format, such as {strange[0]}' if strange else 'only'
        raise CheckpointError(
            f'{file.path} holds {held} {rest}, but the config builds {built}: to take the backbone, name it there, '
            f"model.backbone.init_cfg=dict(type='Pretrained', checkpoint='{file.path}')."
        )
    if _comparable(held, ignore_classes) == _comparable(built, ignore_classes):
        return
    configs = fitting_configs(held)
    fitting = f'use {" or ".join(configs)}' if configs else 'make a config for it'
    changes = []
    if held.depth not in (0, 50):
        changes.append(f'model.backbone.depth={held.depth}')
    if held.num_classes != 80 and not ignore_classes:
        changes.append(f'{_CLASSES_KEY.get(held.family, "model.bbox_head.num_classes")}={held.num_classes}')
    if held.as_two_stage and held.num_queries:
        changes.append('model.mixed_query_selection=True')
    fitting += f' with {" ".join(changes)}' if configs and changes else ''
    raise CheckpointError(f'{file.path} holds {held}, but the config builds {built}: {fitting}.')


_CLASSES_KEY = {'Faster R-CNN': 'model.roi_head.bbox_head.num_classes'}


def _comparable(layout: Layout, ignore_classes: bool) -> Layout:
    """What must be the same: the neck's biases are settled apart, and one layer alone has nothing to share."""
    single = layout.decoder_layers + layout.as_two_stage < 2
    return layout._replace(
        neck_bias=False,
        num_classes=0 if ignore_classes else layout.num_classes,
        with_box_refine=layout.with_box_refine and not single,
    )


def _settle_neck_biases(state: State, own: State, file: WeightsFile) -> list[str]:
    """Fill in or leave out the neck's biases, in place, where that changes nothing."""
    if file.weights.layout.family != DEFORMABLE_DETR:
        return []
    mine, theirs = neck_biases(own), neck_biases(state)
    if mine and not theirs:
        for name in mine:
            state[name] = torch.zeros_like(own[name])
        return [f'{len(mine)} biases of the neck, which the file does not have, set to 0']
    if theirs and not mine:
        if any(state[name].any() for name in theirs):
            raise CheckpointError(
                f"{file.path} has biases in the neck's convolutions, which the config leaves out: set "
                f'model.neck.bias=True, as in {fitting_configs(file.weights.layout)[0]}.'
            )
        for name in theirs:
            del state[name]
        return [f"{len(theirs)} biases of the neck, all 0, left out as in the config's neck"]
    return []


def _sort_out(
    state: State, own: State, anew: list[str]
) -> tuple[State, list[str], list[str], list[tuple[str, str]]]:
    """Split into what fits, what is missing, what is left over, and what has another shape (with both shapes).

    Batch norms' counters are neither missing nor left over: no frozen norm uses them, and other projects drop them.
    """
    counters = {name for name in {*own, *state} if name.endswith('.num_batches_tracked')}
    shapes = [
        (name, f'{tuple(tensor.shape)} instead of {tuple(own[name].shape)}')
        for name, tensor in state.items()
        if name in own and tensor.shape != own[name].shape
    ]
    misshapen = {name for name, _ in shapes}
    fitting = {name: tensor for name, tensor in state.items() if name in own and name not in misshapen}
    missing = [name for name in own if name not in state and name not in counters and name not in anew]
    unexpected = [name for name in state if name not in own and name not in counters]
    return fitting, missing, unexpected, shapes


def _misfit(
    file: WeightsFile, missing: list[str], unexpected: list[str], shapes: list[tuple[str, str]]
) -> str:
    faults = []
    if missing:
        faults.append(f'lacks {len(missing)} tensors of the model ({_listed(missing)})')
    if unexpected:
        faults.append(f'has {len(unexpected)} tensors left over ({_listed(unexpected)})')
    if shapes:
        faults.append(f'has other shapes ({_listed([f"{name}: {shape}" for name, shape in shapes])})')
    return (
        f'{file.path} ({file.weights.title}) does not fit the model of this config: it {"; it ".join(faults)}. '
        'To load what fits, allow partial loading (--allow-partial).'
    )


def _listed(names: list[str] | tuple[str, ...], limit: int = 10) -> str:
    more = f', and {len(names) - limit} more' if len(names) > limit else ''
    return ', '.join(names[:limit]) + more
