"""Black box: stop training at the first non-finite loss or gradient, and record the step for debugging."""

import math
from collections.abc import Mapping, MutableMapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.runner import Runner
from torch import Tensor, nn

from ddetr.engine.capsule import Capsule, versions, write_capsule
from ddetr.engine.interruption import InterruptionHook
from ddetr.engine.step_trace import Finding, Step, nonfinite_names, run_again
from ddetr.registry import HOOKS
from ddetr.structures.effective_batch import ACTIVE, EffectiveBatch
from ddetr.utils.errors import NonFiniteError, first_line
from ddetr.utils.processes import any_process, gather
from ddetr.utils.seeding import derive_seed

SKIPPED, OVERFLOWS = 'skipped_steps', 'overflows_in_a_row'  # message hub keys, stored in checkpoints
MIN_LOSS_SCALE = 1.0  # at this scale, overflows are not caused by the loss scale
MAX_OVERFLOWS = 30  # enough to reduce a dynamic scale from 2^30 to 1; constant scales never decrease
NAMED = 5  # maximum number of weights listed in a message


@HOOKS.register_module()
class BlackBoxHook(Hook):
    """Stop all processes if a loss or gradient is NaN or infinite, before the weights are updated.

    On by default; `default_hooks=dict(black_box=None)` disables it. Nothing is recorded before a failure. After one,
    the step is rerun from its seed to find the first non-finite module, and each affected process writes a capsule for
    tools/analysis/replay.py to the work directory.

    Overflowing float16 gradients are normal and reduce the loss scale. They count as a failure only at a scale of 1,
    or after 30 in a row. With accumulation, the whole window is skipped.

    Args:
        max_skipped: Maximum number of failed steps to skip with a warning instead of stopping, counted across resumes.
        max_capsules: Maximum number of capsules per process.
    """

    priority = 'HIGHEST'  # before other hooks see the batch and the losses

    def __init__(self, max_skipped: int = 0, max_capsules: int = 3) -> None:
        self.max_skipped, self.max_capsules = max_skipped, max_capsules
        self.notes: list[str] = []
        self._batch: Any = None
        self._bad = False  # whether the last step was non-finite in any process
        self._buffers: list[Tensor] | None = None  # buffers that a training forward pass may change
        self._before: list[Tensor] = []  # their values before the step
        self._written = 0

    def before_train(self, runner: Runner) -> None:
        """Start watching the updates."""
        self._runner, self._wrapper = runner, cast(Any, runner.optim_wrapper)
        if not hasattr(self._wrapper, 'watch'):
            runner.logger.warning(
                f'{type(self._wrapper).__name__} does not support the check for non-finite numbers: use OptimWrapper '
                'or AmpOptimWrapper.'
            )
            return
        self._wrapper.watch = self
        self._interruption = next(hook for hook in runner.hooks if isinstance(hook, InterruptionHook))

    def after_train(self, runner: Runner) -> None:
        """Stop watching the updates."""
        self._wrapper.watch = None

    def before_train_epoch(self, runner: Runner) -> None:
        """Reset the list of buffers, because validation may change which modules are in training mode."""
        self._buffers = None

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        """Keep the batch and a copy of the buffers that the step may change."""
        self._batch = data_batch
        if self._buffers is None:
            modules = (module for module in self._model.modules() if module.training)
            self._buffers = [buffer for module in modules for buffer in module.buffers(recurse=False)]
            self._before = [buffer.clone() for buffer in self._buffers]
        elif self._buffers:
            torch._foreach_copy_(self._before, self._buffers)

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        """Copy all losses from the GPU at once, and exclude non-finite ones from the logged means."""
        self._batch = None
        if isinstance(outputs, MutableMapping):
            _fetch(outputs)
            for name in [name for name in outputs if self._bad and not math.isfinite(outputs[name])]:
                del outputs[name]
        if skipped := runner.message_hub.get_info(SKIPPED, 0):
            runner.message_hub.update_scalar(f'train/{SKIPPED}', skipped)

    def allows(self, loss: float, gradient_norm: float) -> bool:
        """See `Watch`. Must be called by all processes."""
        fault = self._fault(loss, gradient_norm)
        self._bad, self._interruption.agreed = any_process(fault is not None, self._interruption.asked)
        if self._bad and self._batch is not None and not self._wrapper.spoilt:
            self._alarm(fault)
        self.notes.clear()
        return not self._bad

    @property
    def _model(self) -> Any:
        model = self._runner.model
        return cast(nn.Module, model.module) if is_model_wrapper(model) else model

    def _fault(self, loss: float, gradient_norm: float) -> str | None:
        """Describe the failure in this process; None if the step is finite."""
        if not math.isfinite(loss):
            return f'the loss is {loss}'
        if self.notes:
            return 'the loss is finite, but the predictions are not'
        scaler, hub = getattr(self._wrapper, 'loss_scaler', None), self._runner.message_hub
        if scaler is None or not scaler.is_enabled():
            return None if math.isfinite(gradient_norm) else f'the gradient norm is {gradient_norm}'
        overflows = hub.get_info(OVERFLOWS, 0)
        if math.isfinite(gradient_norm):
            if overflows and self._wrapper.should_update():
                hub.update_info(OVERFLOWS, 0)
            return None
        overflows += self._wrapper.should_update()
        hub.update_info(OVERFLOWS, overflows)
        scale = scaler.get_scale()
        if scale > MIN_LOSS_SCALE and overflows <= MAX_OVERFLOWS:
            return None
        return f'the gradient norm is {gradient_norm} at a loss scale of {scale:g}, overflow {overflows} in a row'

    def _alarm(self, fault: str | None) -> None:
        """Investigate a failure, then stop the training or warn."""
        runner, hub = self._runner, self._runner.message_hub
        report = self._investigate(fault)
        said = [text for text in gather(report) if text]
        skipped = hub.get_info(SKIPPED, 0)
        where = f'iteration {runner.iter + 1} (epoch {runner.epoch + 1})'
        text = f'{where}: {" ".join(said)}'
        if skipped >= self.max_skipped:
            passed = f' {skipped} steps were skipped before.' if skipped else ''
            raise NonFiniteError(
                f'{text} The weights were not updated.{passed} To skip up to N such steps, set '
                'default_hooks.black_box.max_skipped=N.'
            )
        hub.update_info(SKIPPED, skipped + 1)
        runner.logger.warning(f'{text} Skipped: step {skipped + 1} of at most {self.max_skipped}.')

    def _investigate(self, fault: str | None) -> str:
        """Rerun the step of this process and write a capsule. Return a message, or '' if the step is finite here."""
        step, weights = self._step(), nonfinite_names(dict(self._model.named_parameters()))
        self._restore()
        state = {name: value.detach().clone() for name, value in self._model.state_dict().items()}
        finding, failure = Finding({}), ''
        try:
            finding = run_again(self._model, step)
        except Exception as error:  # never hide the original failure
            failure = f'the step cannot be rerun: {type(error).__name__}: {first_line(error)}'
        self._restore()
        mine = bool(finding.place or finding.notes or failure)
        found_anywhere = any_process(mine)[0]
        if found_anywhere and not mine:
            return ''
        report = self._describe(fault or 'no fault here', finding, weights, failure)
        return f'{report} {self._write(step, state, finding, report)}'

    def _step(self) -> Step:
        scaler = getattr(self._wrapper, 'loss_scaler', None)
        seed = derive_seed(self._runner.base_seed, 'iteration', self._runner.iter, self._runner.rank)
        dtype = getattr(self._wrapper, 'cast_dtype', None)
        known = ACTIVE.get() or EffectiveBatch(())
        known = replace(
            known, counts={**known.counts, **known.found}, found={}
        )  # no communication in the rerun
        return Step(self._batch, seed, known, dtype, scaler.get_scale() if scaler else 1.0)

    def _restore(self) -> None:
        """Restore the buffers to their values before the step and clear the gradients."""
        self._wrapper.zero_grad()
        if self._buffers:
            torch._foreach_copy_(self._buffers, self._before)

    def _describe(self, fault: str, finding: Finding, weights: Sequence[str], failure: str) -> str:
        losses = [f'{name}={value:g}' for name, value in finding.losses.items() if not math.isfinite(value)]
        lines = [f'process {self._runner.rank}: {fault}.']
        if losses:
            lines.append(f'Not finite: {_some(losses)}.')
        if weights:
            lines.append(f'Weights that were not finite before this step: {_some(weights)}.')
        if finding.place:
            lines.append(f'First module: {finding.place}, {finding.what}.')
        elif not finding.notes:
            lines.append(f'{failure or "The step is finite when rerun: the failure is not reproducible"}.')
        lines += [f'{note}.' for note in dict.fromkeys(finding.notes)]
        return ' '.join([*lines, f'Images: {_some(_images(self._batch, finding.rows), 16)}.'])

    def _write(self, step: Step, weights: Mapping[str, Tensor], finding: Finding, report: str) -> str:
        """Write the capsule. Return a message about it."""
        runner, scaler = self._runner, getattr(self._wrapper, 'loss_scaler', None)
        if self._written >= self.max_capsules:
            return f'No capsule was written: the limit max_capsules={self.max_capsules} is reached.'
        path = Path(runner.work_dir, f'nonfinite_iter_{runner.iter + 1}_rank_{runner.rank}.capsule')
        scaling = scaler.state_dict() if scaler else {}
        config, file = runner.cfg.to_dict(), runner.cfg.filename
        found = finding.losses, finding.place, report
        capsule = Capsule(
            step, weights, config, file, scaling, *found, runner.iter + 1, runner.rank, versions()
        )
        try:
            write_capsule(capsule, path)
        except Exception as error:  # full disk, unpicklable samples, ...: never hide the original failure
            return f'The capsule {path} cannot be written: {first_line(error)}.'
        self._written += 1
        return f'Replay the step with python tools/analysis/replay.py {path}.'


def _fetch(losses: MutableMapping[str, Any]) -> None:
    """Copy all scalars from the GPU to the CPU at once, instead of one by one when they are logged."""
    there = {name: value for name, value in losses.items() if isinstance(value, Tensor) and value.is_cuda}
    if there:
        together = torch.stack([value.detach().double().mean() for value in there.values()]).cpu()
        losses.update(zip(there, together, strict=True))


def _images(batch: Any, rows: Sequence[int]) -> list[str]:
    """Paths or ids of the images in `rows`; if empty, of those with non-finite boxes, otherwise of all images."""
    samples = batch.get('data_samples', ()) if isinstance(batch, Mapping) else ()
    if not samples:
        return [f'index {row} in the batch' for row in rows] or ['unknown']
    bad = [row for row, s in enumerate(samples) if 'gt_instances' in s and not _has_finite_boxes(s)]
    chosen = [samples[row] for row in rows or bad or range(len(samples))]
    return [str(sample.get('img_path', sample.get('img_id', 'unnamed'))) for sample in chosen]


def _has_finite_boxes(sample: Any) -> bool:
    return bool(torch.as_tensor(sample.gt_instances.get('bboxes', ())).isfinite().all())


def _some(names: Sequence[str], limit: int = NAMED) -> str:
    return ', '.join(names[:limit]) + (f' and {len(names) - limit} more' if len(names) > limit else '')
