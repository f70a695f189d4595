"""Training loops that resume bit-exactly, also in the middle of an epoch.

No random state is saved: the random numbers of an iteration are derived from the seed, the iteration and the rank,
those of a sample from the seed, the epoch and its index. Gradients of an unfinished accumulation window are not saved
either: the weights have not changed since the window began, so its first batches are recomputed.
"""

from bisect import bisect
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count, islice
from typing import Any, NamedTuple, cast

import torch
from mmengine import runner as engine
from mmengine.dataset import InfiniteSampler
from mmengine.model import is_model_wrapper
from mmengine.runner import BaseLoop
from torch import nn

from ddetr.datasets.samplers import ResumableBatchSampler
from ddetr.registry import LOOPS
from ddetr.structures.effective_batch import EffectiveBatch, gather_batch
from ddetr.utils.errors import CheckpointError, ConfigError
from ddetr.utils.seeding import derive_seed, seed_everything

from .interruption import shield_worker


class Place(NamedTuple):
    """Position in the sequence of training batches."""

    epoch: int  # sampler epoch
    start: int  # index of the first sample in the epoch's order, over all processes
    skip: int  # number of batches to skip from there


class Position(NamedTuple):
    """Position from which training resumes, as stored in checkpoints; identical in all processes."""

    epoch: int  # `epoch`, `start` and `skip`: `Place` of the current window's first batch
    start: int
    skip: int
    replay: int  # number of completed batches in that window
    processes: int
    batch_size: int  # per process
    accumulated: int  # number of batches in a full window
    validate: bool  # whether the validation after the last iteration is still pending

    @property
    def samples(self) -> int:
        """Number of samples in the epoch, over all processes, before the current window."""
        return self.start + self.skip * self.processes * self.batch_size


class ResumableLoop(BaseLoop):
    """Common part of both training loops: batch order, accumulation windows, seeds and resuming."""

    _epoch: int
    _iter: int
    val_begin: int
    dynamic_milestones: list[int]
    dynamic_intervals: list[int]

    _next = Place(0, 0, 0)
    _window: Sequence[Place] = ()  # places of the current window's batches
    _window_begin = 0  # iteration of the first of them
    _replay = 0  # number of batches in the first window after resuming that were already completed
    _validate_first = False
    _effective = EffectiveBatch(())

    def __init__(self, runner: Any, dataloader: Any, **kwargs: Any) -> None:
        super().__init__(runner, _with_seeds(dataloader), **kwargs)

    @property
    def batch_sampler(self) -> ResumableBatchSampler:
        """Batch sampler of the loader. Raise ConfigError if the loader was not built from a config."""
        if not isinstance(self.dataloader.batch_sampler, ResumableBatchSampler):
            raise ConfigError(
                'train_dataloader is a DataLoader, which cannot be resumed: pass a config dict instead.'
            )
        return self.dataloader.batch_sampler

    @property
    def accumulated(self) -> int:
        """Number of batches in a full accumulation window."""
        return self.runner.optim_wrapper._accumulative_counts

    def position(self, epoch: int, iteration: int) -> Position:
        """Position after `epoch` epochs and `iteration` iterations, which may include the current one."""
        place, replay, done = self._next, self._replay, iteration - self._window_begin
        if epoch > self._epoch:
            place, replay = Place(epoch, 0, 0), 0
        elif self._window and done < len(self._window):
            place, replay = self._window[0], done
        elif self._window:
            place, replay = self._window[-1]._replace(skip=self._window[-1].skip + 1), 0
        validate = (epoch, iteration) != (self._epoch, self._iter) and self._is_validated_after(
            epoch, iteration
        )
        sizes = self.runner.world_size, self.batch_sampler.batch_size, self.accumulated
        return Position(*place, replay, *sizes, validate)

    def restore(self, position: Mapping[str, Any] | None) -> str | None:
        """Resume from a checkpoint whose `_epoch` and `_iter` are already set.

        Args:
            position: The checkpoint's `Position`, as a dict; None for mmengine checkpoints, which have none.

        Returns:
            Description of the differences from an uninterrupted run; None if there are none.

        Raises:
            CheckpointError: The position was written by an incompatible version.
        """
        sampler: Any = self.batch_sampler.sampler
        if getattr(sampler, 'seed', None) is not None:
            sampler.seed = self.runner.base_seed  # already restored from the checkpoint
        if position is None:
            self._next = self._place_of_iteration()
            return None
        try:
            then = Position(**position)
        except TypeError as error:
            raise CheckpointError(
                f'the checkpoint was saved by an incompatible version of ddetr: {error}.'
            ) from error
        self._next, self._replay, self._validate_first = Place(*then[:3]), then.replay, then.validate
        here = then._replace(
            processes=self.runner.world_size,
            batch_size=self.batch_sampler.batch_size,
            accumulated=self.accumulated,
        )
        if here == then:
            return None
        self._replay = 0
        per_iteration = here.processes * here.batch_size
        if (here.processes, here.batch_size) != (then.processes, then.batch_size):
            inside = hasattr(sampler, 'start')
            self._next = Place(
                then.epoch, then.samples if inside else 0, 0 if inside else then.samples // per_iteration
            )
            self._renumber(then.samples // per_iteration)
        return _differences(then, here)

    def micro_batches(self, source: Iterator[tuple[Place, Any]]) -> Iterator[Any]:
        """Yield the batches of `source`, fetched window by window. An interrupted window is recomputed first."""
        while window := list(islice(source, self.accumulated)):
            repeated, self._replay = self._replay, 0
            self._window, self._window_begin = [place for place, _ in window], self._iter - repeated
            self.runner.optim_wrapper.initialize_count_status(self.runner.model, 0, len(window))
            self._effective = self._effective_batch([batch for _, batch in window])
            for number, (_, batch) in enumerate(window[:repeated]):
                self._repeat(self._window_begin + number, batch)
            yield from (batch for _, batch in window[repeated:])

    def batches_from(self, place: Place) -> Iterator[tuple[Place, Any]]:
        """Yield the batches of one epoch, starting at `place`."""
        batch_sampler, sampler = self.batch_sampler, cast(Any, self.batch_sampler.sampler)
        batch_sampler.seed, batch_sampler.skip = self.runner.base_seed, place.skip
        sampler.start = place.start
        if hasattr(sampler, 'set_epoch'):
            sampler.set_epoch(place.epoch)
        for number, batch in enumerate(self.dataloader, place.skip):
            yield place._replace(skip=number), batch

    @contextmanager
    def iteration(self, number: int) -> Iterator[None]:
        """Seed the random generators for an iteration, and normalise its losses over the accumulation window."""
        self._seed(number)
        with self._effective.active():
            yield

    def _seed(self, iteration: int) -> None:
        seed_everything(derive_seed(self.runner.base_seed, 'iteration', iteration, self.runner.rank))

    def _repeat(self, iteration: int, batch: Any) -> None:
        """Recompute the gradients of an earlier iteration and accumulate them, without updating running statistics."""
        self.runner.model.train()
        with _buffers_kept(self.runner.model), self.iteration(iteration):
            self.runner.model.train_step(batch, optim_wrapper=self.runner.optim_wrapper)

    def _effective_batch(self, window: Sequence[Any]) -> EffectiveBatch:
        """Effective batch for the losses of a window; see `BaseDetector` for `count_ahead`."""
        samples: list[Any] = [
            batch.get('data_samples', ()) if isinstance(batch, Mapping) else () for batch in window
        ]
        model, wrapper = self.runner.model, self.runner.optim_wrapper
        model = model.module if is_model_wrapper(model) else model
        counts = Counter[str]()
        if len(window) > 1 and hasattr(model, 'count_ahead'):
            model.train()
            for number, batch in enumerate(window, self._window_begin):
                self._seed(number)
                with torch.no_grad(), _buffers_kept(model), wrapper.optim_context(model):
                    counts.update(model(**model.data_preprocessor(batch, True), mode='count_ahead'))
        return gather_batch(samples, counts)

    def _validate(self) -> None:
        self._validate_first = False
        self.runner.val_loop.run()

    def _is_due(self, done: int, last: int) -> bool:
        """Whether to validate after `done` of `last` epochs or iterations."""
        step = bisect(self.dynamic_milestones, done + 1)
        interval = self.dynamic_intervals[step - 1]
        begun = done >= self.val_begin
        return self.runner.val_loop is not None and begun and (done % interval == 0 or done == last)

    def _is_validated_after(self, epoch: int, iteration: int) -> bool:
        raise NotImplementedError

    def _place_of_iteration(self) -> Place:
        """Place of `_iter`, assuming a constant number of processes and batch size."""
        raise NotImplementedError

    def _renumber(self, batches: int) -> None:
        """Update `_iter` to `batches` into the epoch, after the number of images per iteration has changed."""
        raise NotImplementedError


@LOOPS.register_module()
class EpochBasedTrainLoop(ResumableLoop, engine.EpochBasedTrainLoop):
    """mmengine's epoch-based loop, resumable mid-epoch. The last accumulation window ends with the epoch."""

    def run(self) -> nn.Module:
        """Train until `max_epochs`."""
        self.runner.call_hook('before_train')
        if self._validate_first:
            self._validate()
        while self._epoch < self._max_epochs and not self.stop_training:
            self.run_epoch()
            if self._is_due(self._epoch, self._max_epochs):
                self._validate()
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_epoch(self) -> None:
        """Train for the rest of the epoch."""
        self.runner.call_hook('before_train_epoch')
        self.runner.model.train()
        batches = self.micro_batches(self.batches_from(self._next._replace(epoch=self._epoch)))
        for index, batch in enumerate(batches, self._iter - self._epoch * len(self.dataloader)):
            self.run_iter(index, batch)
        self._iter = (self._epoch + 1) * len(self.dataloader)
        self.runner.call_hook('after_train_epoch')
        self._epoch += 1
        self._next, self._window = Place(self._epoch, 0, 0), ()

    def run_iter(self, idx: int, data_batch: Any) -> None:
        """Train on one batch."""
        with self.iteration(self._iter):
            super().run_iter(idx, data_batch)

    def _is_validated_after(self, epoch: int, iteration: int) -> bool:
        return epoch > self._epoch and self._is_due(epoch, self._max_epochs)

    def _place_of_iteration(self) -> Place:
        return Place(self._epoch, 0, self._iter - self._epoch * len(self.dataloader))

    def _renumber(self, batches: int) -> None:
        self._iter = self._epoch * len(self.dataloader) + batches


@LOOPS.register_module()
class IterBasedTrainLoop(ResumableLoop, engine.IterBasedTrainLoop):
    """mmengine's iteration-based loop. A finite sampler restarts at the end of each epoch.

    Args:
        runner, dataloader: Set by the Runner.
        max_iters: Number of training iterations.
        val_begin: First iteration at which to validate.
        val_interval: Number of iterations between validations.
        dynamic_intervals: Pairs of an iteration and the validation interval that applies from there on.
    """

    def __init__(
        self,
        runner: Any,
        dataloader: Any,
        max_iters: int,
        val_begin: int = 1,
        val_interval: int = 1000,
        dynamic_intervals: list[tuple[int, int]] | None = None,
    ) -> None:
        # skip mmengine's constructor: it starts the loader's workers before a resume can set the position
        BaseLoop.__init__(self, runner, _with_seeds(dataloader))
        self._max_iters, self._max_epochs = int(max_iters), 1
        self._epoch = self._iter = 0
        self.val_begin, self.val_interval, self.stop_training = val_begin, val_interval, False
        self.dynamic_milestones, self.dynamic_intervals = engine.utils.calc_dynamic_intervals(
            val_interval, dynamic_intervals
        )
        runner.visualizer.dataset_meta = getattr(self.dataloader.dataset, 'metainfo', None)

    def run(self) -> nn.Module:
        """Train until `max_iters`."""
        self.runner.call_hook('before_train')
        self.runner.call_hook('before_train_epoch')
        if self._validate_first:
            self._validate()
        left = self._max_iters - self._iter + self._replay
        for batch in self.micro_batches(islice(self._endless_batches(), left)):
            self.runner.model.train()
            self.run_iter(batch)
            if self._is_due(self._iter, self._max_iters):
                self._validate()
            if self.stop_training:
                break
        self.runner.call_hook('after_train_epoch')
        self.runner.call_hook('after_train')
        return self.runner.model

    def run_iter(self, data_batch: Any) -> None:
        """Train on one batch."""
        with self.iteration(self._iter):
            super().run_iter(data_batch)

    def _endless_batches(self) -> Iterator[tuple[Place, Any]]:
        yield from self.batches_from(self._next)
        for epoch in count(self._next.epoch + 1):
            yield from self.batches_from(Place(epoch, 0, 0))

    def _is_validated_after(self, epoch: int, iteration: int) -> bool:
        return iteration > self._iter and self._is_due(iteration, self._max_iters)

    def _place_of_iteration(self) -> Place:
        if isinstance(self.batch_sampler.sampler, InfiniteSampler):
            return Place(0, 0, self._iter)
        epoch, skip = divmod(self._iter, len(self.dataloader))
        return Place(epoch, 0, skip)

    def _renumber(self, batches: int) -> None:
        """Keep `_iter`: it counts all iterations, not those of an epoch."""


def _with_seeds(dataloader: Any) -> Any:
    """Add per-sample seeds to a data loader config. A loader that is already built is returned unchanged."""
    if not isinstance(dataloader, Mapping):
        return dataloader
    loader = {**dataloader}
    batches = {'type': 'ResumableBatchSampler', 'batch_sampler': loader.get('batch_sampler')}
    if 'drop_last' in loader:
        batches['drop_last'] = loader.pop('drop_last')
    loader |= {'batch_sampler': batches, 'dataset': {'type': 'SeededDataset', 'dataset': loader['dataset']}}
    if 'worker_init_fn' not in loader:
        loader.pop('disable_subprocess_warning', None)
        loader['worker_init_fn'] = {'type': shield_worker}
    return loader


def _differences(then: Position, here: Position) -> str:
    """Describe the effects of a different number of processes, images per batch or accumulated batches."""
    says = [
        'the composition of batches' if then[4:6] != here[4:6] else '',
        'random numbers inside the model, such as dropout' if then.processes != here.processes else '',
        'schedules by iteration, since the number of images per iteration has changed'
        if then.processes * then.batch_size != here.processes * here.batch_size
        else '',
        'the number of batches per update' if then.accumulated != here.accumulated else '',
    ]
    return (
        f'saved by {then.processes} processes with {then.batch_size} images per batch and {then.accumulated} '
        f'accumulated batches, resumed at image {then.samples} of epoch {then.epoch + 1} with {here.processes} x '
        f'{here.batch_size}, {here.accumulated} accumulated. This may differ from an uninterrupted run in '
        f'{" and ".join(filter(None, says))}'
    )


@contextmanager
def _buffers_kept(model: nn.Module) -> Iterator[None]:
    before = [buffer.clone() for buffer in model.buffers()]
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in zip(model.buffers(), before, strict=True):
                buffer.copy_(value)
