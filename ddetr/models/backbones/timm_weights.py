"""Load weights into `TimmBackbone`, matched by timm's names, by the original authors' names, or by order."""

import inspect
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import nn

from ddetr.utils.errors import CheckpointError
from ddetr.weights import State, read_checkpoint
from ddetr.weights.files import tensors_in


def read_timm_weights(path: str, name: str, full: Any, own: State, in_channels: int, by_order: bool) -> State:
    """Read a checkpoint without executing code from it.

    Args:
        path: Path of the checkpoint.
        name: timm model name, for error messages.
        full: Full timm model without storage.
        own: State dict of the same model with `features_only`; the result has its names and shapes.
        in_channels: Number of image channels.
        by_order: Whether to match tensors by order instead of by name.

    Raises:
        CheckpointError: The file cannot be read or does not fit.
    """
    # prefer averaged weights, as timm does; torch.compile and DDP prefixes may come in either order
    state = tensors_in(read_checkpoint(path), path, ('state_dict_ema', 'model_ema', 'state_dict', 'model'))
    for prefix in ('_orig_mod.', 'module.', '_orig_mod.'):
        state = {key.removeprefix(prefix): value for key, value in state.items()}
    for prefix in ('backbone.', 'timm_model.'):  # a detector's or this backbone's own checkpoint
        part = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        state = part or state
    if by_order:
        state = _by_order(path, state, full.state_dict())
    fits = [_fit(state, full, own, in_channels)]
    # timm's own conversion of older files for this family
    older = getattr(inspect.getmodule(type(full)), 'checkpoint_filter_fn', lambda state, model: state)
    with suppress(Exception):  # it may raise on unexpected names; errors then refer to the plain names
        fits.append(_fit(older(dict(state), full), full, own, in_channels))
    fitted, faults = min(fits, key=lambda fit: len(fit[1]))
    if faults:
        raise CheckpointError(
            f"checkpoint {path} does not match timm's {name}: {faults[0]} and {len(faults) - 1} more. "
            'Use weights of this model, or set remap_checkpoint=True if only the tensor names differ.'
        )
    return fitted


def feature_names(full: nn.Module, own: Mapping[str, Any]) -> dict[str, str]:
    """Map tensor names of the full model to those under `features_only`, for tensors that both have.

    timm flattens the first level of `nn.Sequential` (`layers.0` becomes `layers_0`) or wraps the model in a module.
    """
    found: dict[str, str] = {}
    for name in full.state_dict():
        first, _, rest = name.partition('.')
        flat = [f'{first}_{rest}'] if isinstance(getattr(full, first, None), nn.Sequential) else []
        candidates = (name, f'model.{name}', f'body.{name}', *flat)
        found.update((name, candidate) for candidate in candidates if candidate in own)
    return found


def _fit(state: State, full: Any, own: State, in_channels: int) -> tuple[State, list[str]]:
    """Rename the tensors of `state` to those of `timm_model`, and list missing, mismatched and unused tensors.

    Tensors that only the full model has, such as the classifier and unused last stages, are ignored.
    """
    from timm.models import adapt_input_conv

    cfg: Mapping[str, Any] = full.pretrained_cfg
    renamed = {**feature_names(full, own), **{name: name for name in own}}
    useless = tuple(f'{name}.' for name in _as_tuple(cfg.get('classifier')))
    fitted = {renamed[name]: value for name, value in state.items() if name in renamed}
    for first in _as_tuple(cfg.get('first_conv')):
        kernel = fitted.get(key := renamed.get(f'{first}.weight', ''))
        if kernel is not None and kernel.ndim == 4 and kernel.shape[1] == 3 != in_channels:
            fitted[key] = adapt_input_conv(in_channels, kernel)
    faults = []
    for name, value in own.items():
        if name not in fitted and name.endswith('num_batches_tracked'):
            fitted[name] = torch.zeros_like(value)  # old files lack these counters
        elif name not in fitted:
            faults.append(f'{name} (missing)')
        elif fitted[name].shape != value.shape:
            faults.append(f'{name} (shape {tuple(fitted[name].shape)}, not {tuple(value.shape)})')
    known = {*renamed, *full.state_dict()}
    left_over = [name for name in state if name not in known and not name.startswith(useless)]
    return fitted, faults + [f'{name} (unexpected)' for name in left_over]


def _by_order(path: str, state: State, own: State) -> State:
    """Rename tensors to those of the full model; both must be in the same order."""
    if len(state) != len(own):
        raise CheckpointError(
            f'checkpoint {path} cannot be remapped: it has {len(state)} tensors, the model {len(own)}.'
        )
    for (theirs, value), (name, mine) in zip(state.items(), own.items(), strict=True):
        same_kind = theirs.rpartition('.')[2] == name.rpartition('.')[2]
        if not same_kind or (value.shape != mine.shape and value.ndim != 4):
            raise CheckpointError(
                f'checkpoint {path} cannot be remapped: {theirs} {tuple(value.shape)} does not match '
                f'{name} {tuple(mine.shape)} of the model.'
            )
    return dict(zip(own, state.values(), strict=True))


def _as_tuple(names: str | Sequence[str] | None) -> tuple[str, ...]:
    return (names,) if isinstance(names, str) else tuple(names or ())
