"""Effective batch of a weight update: the images of all processes and accumulated batches.

The losses of each part are normalised by counts over the effective batch, so that the mean of the gradients over parts,
as computed by processes and accumulation, equals the gradient of one large batch.
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
    """Facts about the effective batch that are known before its first backward pass.

    Attributes:
        boxes_per_image: Number of ground-truth boxes of each image.
        processes: Number of processes.
        accumulated: Number of accumulated batches per process.
        counts: Totals by name that require a forward pass, see `BaseDetector`; empty without accumulation.
        found: Totals that a forward pass without accumulation has computed.
    """

    boxes_per_image: Sequence[int]
    processes: int = 1
    accumulated: int = 1
    counts: Mapping[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)

    def total(self, name: str, here: int) -> int:
        """Sum of a count over all parts, `here` in this one; all processes call it.

        Raises:
            ValueError: `counts` lacks the name, and the other accumulated batches have not been run yet.
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
        """Normaliser of a sum over this part, where `total` is the count over the effective batch."""
        return max(total, 1.0) / self.num_parts

    @property
    def num_parts(self) -> int:
        """Number of batches whose gradients are averaged."""
        return self.processes * self.accumulated

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make `effective_batch` return this one."""
        token = ACTIVE.set(self)
        try:
            yield
        finally:
            ACTIVE.reset(token)


def effective_batch(samples: Samples) -> EffectiveBatch:
    """Active effective batch, else that of the current `samples` of all processes; all processes call it."""
    return ACTIVE.get() or gather_batch([samples])


def gather_batch(batches: Sequence[Samples], counts: Mapping[str, int] = _NOTHING) -> EffectiveBatch:
    """Effective batch of the accumulated `batches` and `counts` of all processes; all processes call it."""
    boxes = [len(getattr(sample, 'gt_instances', ())) for samples in batches for sample in samples]
    everywhere = gather((boxes, dict(counts)))
    totals = {name: sum(theirs[name] for _, theirs in everywhere) for name in counts}
    together = [number for theirs, _ in everywhere for number in theirs]
    return EffectiveBatch(together, len(everywhere), len(batches), totals)
