"""The batch that an update of the weights is made of: all images of all processes and accumulated batches.

The losses of each part of it are divided by counts of the whole, so that the mean of the parts' gradients, which
processes and accumulation take, is the gradient of one large batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import MappingProxyType

from ddetr.structures.det_data_sample import Samples
from ddetr.utils.processes import gather

_NOTHING: Mapping[str, int] = MappingProxyType({})
ACTIVE: ContextVar['EffectiveBatch | None'] = ContextVar('effective batch', default=None)


@dataclass(frozen=True)
class EffectiveBatch:
    """What is known of it before its first backward pass.

    Attributes:
        boxes_per_image: Ground-truth boxes of each of its images.
        processes: Their number.
        accumulated: Batches of each process.
        counts: Totals by name that only a forward pass tells, see `BaseDetector`; without accumulation none.
        found: Totals that a forward pass without accumulation has told.
    """

    boxes_per_image: Sequence[int]
    processes: int = 1
    accumulated: int = 1
    counts: Mapping[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)

    def total(self, name: str, here: int) -> int:
        """The sum over all parts of a count that is `here` in this one; all processes call it.

        Raises:
            ValueError: `counts` has no such name, and accumulated batches have not been through the model yet.
        """
        if name in self.counts:
            return self.counts[name]
        if self.accumulated > 1:
            raise ValueError(
                f'the losses are divided by a count, {name!r}, that is not known before the other accumulated batches '
                'are through the model: give it in count_ahead() of the detector, or set accumulative_counts=1'
            )
        self.found[name] = sum(gather(here))
        return self.found[name]

    def share(self, total: float) -> float:
        """What a sum over this part is divided by, where `total` is the whole batch's count."""
        return max(total, 1.0) / self.num_parts

    @property
    def num_parts(self) -> int:
        """Batches that go through the model one by one, the mean of whose gradients is taken."""
        return self.processes * self.accumulated

    @contextmanager
    def active(self) -> Iterator[None]:
        """Let `effective_batch` return this one."""
        token = ACTIVE.set(self)
        try:
            yield
        finally:
            ACTIVE.reset(token)


def effective_batch(samples: Samples) -> EffectiveBatch:
    """The active one; without any, of the `samples` that each process has in its hands; all processes call it."""
    return ACTIVE.get() or gather_batch([samples])


def gather_batch(batches: Sequence[Samples], counts: Mapping[str, int] = _NOTHING) -> EffectiveBatch:
    """The effective batch of every process's accumulated `batches` and their `counts`; all processes call it."""
    boxes = [len(getattr(sample, 'gt_instances', ())) for samples in batches for sample in samples]
    everywhere = gather((boxes, dict(counts)))
    totals = {name: sum(theirs[name] for _, theirs in everywhere) for name in counts}
    together = [number for theirs, _ in everywhere for number in theirs]
    return EffectiveBatch(together, len(everywhere), len(batches), totals)
