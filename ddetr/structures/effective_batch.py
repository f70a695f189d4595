"""Effective batch of an optimizer step: the images of all processes and accumulated batches.

Losses are normalised by counts over the effective batch. Averaging the gradients over processes and accumulated
batches then gives the gradient of one large batch.
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
    """Properties of the effective batch that are known before its first backward pass.

    Attributes:
        boxes_per_image: Number of ground-truth boxes of each image.
        processes: Number of processes.
        accumulated: Number of accumulated batches per process.
        counts: Totals by name that require a forward pass (see `BaseDetector`); empty without accumulation.
        found: Totals computed during the forward pass when batches are not accumulated.
    """

    boxes_per_image: Sequence[int]
    processes: int = 1
    accumulated: int = 1
    counts: Mapping[str, int] = field(default_factory=dict)
    found: dict[str, int] = field(default_factory=dict)

    def total(self, name: str, here: int) -> int:
        """Sum a count over the effective batch. Must be called by all processes.

        Args:
            name: Name of the count.
            here: Its value in this batch.

        Raises:
            ValueError: `counts` lacks the name, and the other accumulated batches have not been run yet.
        """
        if name in self.counts:
            return self.counts[name]
        if self.accumulated > 1:
            raise ValueError(
                f'the losses are normalised by the count {name!r}, which is unknown until the other accumulated '
                "batches have run: return it from the detector's count_ahead(), or set accumulative_counts=1"
            )
        self.found[name] = sum(gather(here))
        return self.found[name]

    def share(self, total: float) -> float:
        """Normaliser for a sum over this batch, given the `total` count over the effective batch."""
        return max(total, 1.0) / self.num_parts

    @property
    def num_parts(self) -> int:
        """Number of batches whose gradients are averaged."""
        return self.processes * self.accumulated

    @contextmanager
    def active(self) -> Iterator[None]:
        """Make `effective_batch` return this object inside the `with` block."""
        token = ACTIVE.set(self)
        try:
            yield
        finally:
            ACTIVE.reset(token)


def effective_batch(samples: Samples) -> EffectiveBatch:
    """Active effective batch, or one gathered from the `samples` of all processes. Must be called by all processes."""
    return ACTIVE.get() or gather_batch([samples])


def gather_batch(batches: Sequence[Samples], counts: Mapping[str, int] = _NOTHING) -> EffectiveBatch:
    """Gather the accumulated `batches` and `counts` of all processes. Must be called by all processes."""
    boxes = [len(getattr(sample, 'gt_instances', ())) for samples in batches for sample in samples]
    everywhere = gather((boxes, dict(counts)))
    totals = {name: sum(theirs[name] for _, theirs in everywhere) for name in counts}
    together = [number for theirs, _ in everywhere for number in theirs]
    return EffectiveBatch(together, len(everywhere), len(batches), totals)
