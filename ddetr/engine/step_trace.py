"""Rerun a training step to find the first non-finite module."""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NamedTuple

import torch
from mmengine.model import BaseModel
from torch import Tensor, nn

from ddetr.structures.effective_batch import EffectiveBatch
from ddetr.utils.nonfinite import watched
from ddetr.utils.seeding import seed_everything


class Step(NamedTuple):
    """Inputs of a training step of one process, other than weights and buffers."""

    batch: Any  # batch from the data loader
    seed: int  # seed of this process and iteration
    effective: EffectiveBatch
    dtype: torch.dtype | None = None  # autocast dtype
    loss_scale: float = 1.0


class Finding(NamedTuple):
    """First non-finite place in a step."""

    losses: Mapping[str, float]  # all loss terms and other logged values
    place: str = ''  # name and class of the first module; '' if everything is finite
    what: str = ''  # its non-finite tensor: output, gradient, ...
    rows: Sequence[int] = ()  # indices of the affected images in the batch; empty if unknown
    notes: Sequence[str] = ()  # faults recorded during the forward pass


def run_again(model: BaseModel, step: Step) -> Finding:
    """Rerun the forward and backward pass and find the first module with a non-finite output or gradient.

    Gradients are accumulated in the parameters, and buffers change as in any training step.
    """
    rerun, trace = _Rerun(step, next(model.parameters()).device.type), _Trace(_size(step.batch))
    seed_everything(step.seed)
    with trace.on(model), step.effective.active(), torch.compiler.set_stance('force_eager'):
        losses = model.train_step(step.batch, optim_wrapper=rerun)
    values = {name: float(torch.as_tensor(value).detach()) for name, value in losses.items()}
    place, what, rows = trace.first()
    if not place and (bad := [name for name, p in model.named_parameters() if not _finite(p.grad)]):
        place, what = bad[0], 'gradient'
    if not place and not math.isfinite(rerun.loss):
        place, what = f'the losses of {type(model).__name__}', 'sum'
    return Finding(values, place, what, rows, rerun.notes)


def nonfinite_names(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of the tensors that contain NaN or infinity."""
    return [name for name, value in tensors.items() if not _finite(value)]


class _Rerun:
    """Optimizer wrapper that runs the backward pass of a finite loss without updating weights."""

    def __init__(self, step: Step, device: str) -> None:
        self.step, self.device = step, device
        self.notes, self.loss = list[str](), 0.0

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        on = self.step.dtype is not None
        with watched(self.notes), torch.autocast(self.device, self.step.dtype, enabled=on):
            yield

    def update_params(self, loss: Tensor, **kwargs: Any) -> None:
        self.loss = loss.item()
        if math.isfinite(self.loss):
            (loss / self.step.effective.accumulated * self.step.loss_scale).backward()


class _Trace:
    """Records non-finite outputs and gradients of all modules.

    A module is the cause in the backward pass if the gradients of its outputs are finite and that of an input or
    parameter is not. Each input passes through its own identity, because the gradient of a tensor shared by several
    modules does not identify the module.
    """

    def __init__(self, batch_size: int | None) -> None:
        self.batch_size = batch_size
        self.outputs: tuple[str, str, list[int]] | None = None  # first non-finite output
        self.gradients: list[
            tuple[int, str, list[int]]
        ] = []  # calls with a non-finite gradient of an input or parameter
        self.broken = set[int]()  # calls with a non-finite gradient of an output: the cause is a later module
        self.calls: list[str] = []  # modules in call order
        self.running: list[int] = []

    @contextmanager
    def on(self, model: nn.Module) -> Iterator[None]:
        """Trace `model` inside the `with` block."""
        handles: list[Any] = []
        for name, module in model.named_modules():
            label = f'{name} ({type(module).__name__})' if name else type(module).__name__
            handles.append(module.register_forward_pre_hook(partial(self._enter, label), with_kwargs=True))
            handles.append(module.register_forward_hook(partial(self._leave, label)))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def first(self) -> tuple[str, str, list[int]]:
        """Module, kind of tensor, and rows; empty if everything is finite."""
        if self.outputs is not None:
            return self.outputs
        for call, what, rows in self.gradients:
            if call not in self.broken:
                return self.calls[call], what, rows
        return '', '', []

    def _enter(self, label: str, module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
        call = len(self.calls)
        self.calls.append(label)
        self.running.append(call)
        for name, parameter in module.named_parameters(recurse=False):
            self._on_gradient(parameter, call, f'gradient of its {name}')
        copies = [_identity(value) for value in args], {key: _identity(v) for key, v in kwargs.items()}
        for value in _tensors(copies):
            self._on_gradient(value, call, 'gradient of its input')
        return tuple(copies[0]), copies[1]

    def _leave(self, label: str, module: nn.Module, args: tuple, output: Any) -> None:
        while (call := self.running.pop()) and self.calls[call] != label:
            pass  # discard calls that were ended by an exception
        for value in _tensors(output):
            if self.outputs is None and not _finite(value):
                self.outputs = label, 'output', self._rows(value)
            self._on_gradient(value, call, '')

    def _on_gradient(self, tensor: Tensor, call: int, what: str) -> None:
        if tensor.requires_grad and torch.is_grad_enabled():
            tensor.register_hook(partial(self._gradient, call, what))

    def _gradient(self, call: int, what: str, gradient: Tensor) -> None:
        if not _finite(gradient):
            if what:
                self.gradients.append((call, what, self._rows(gradient)))
            else:
                self.broken.add(call)

    def _rows(self, value: Tensor) -> list[int]:
        """Indices of images with non-finite values, if one of the first two dimensions is the batch."""
        for dim in range(min(value.dim() - 1, 2)):
            if value.shape[dim] == self.batch_size:
                bad = (~value.isfinite()).transpose(0, dim).flatten(1).any(1)
                return bad.nonzero().flatten().tolist()
        return []


def _size(batch: Any) -> int | None:
    return len(batch['inputs']) if isinstance(batch, Mapping) and 'inputs' in batch else None


def _finite(value: Tensor | None) -> bool:
    return value is None or not value.is_floating_point() or bool(value.isfinite().all())


def _identity(value: Any) -> Any:
    differentiable = isinstance(value, Tensor) and value.requires_grad and torch.is_grad_enabled()
    return value.view_as(value) if differentiable else value


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _tensors(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _tensors(inner)
