"""Samplers: the order of images, their grouping into batches, and the position after a resume."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from mmengine import dataset as engine
from torch.utils.data import BatchSampler, Sampler

from ddetr.registry import DATA_SAMPLERS
from ddetr.utils.seeding import derive_seed


class SampleIndex(int):
    """Dataset index that carries its epoch and the seeds for random draws.

    Attributes:
        epoch: Epoch of the sample.
        draw_seed: Seed of the draws made for this sample alone.
        batch_seed: Seed of the draws shared by all images of a batch (transforms/batch_draws.py).
    """

    epoch: int
    draw_seed: int | None
    batch_seed: int | None

    def __new__(
        cls, index: int, epoch: int, draw_seed: int | None = None, batch_seed: int | None = None
    ) -> 'SampleIndex':
        self = super().__new__(cls, index)
        self.epoch, self.draw_seed, self.batch_seed = epoch, draw_seed, batch_seed
        return self

    def __getnewargs__(self) -> tuple:  # indices are pickled when they are sent to a worker
        return int(self), self.epoch, self.draw_seed, self.batch_seed


@DATA_SAMPLERS.register_module()
class DefaultSampler(engine.DefaultSampler):
    """mmengine's epoch-based sampler, with the same order, that can start mid-epoch.

    Attributes:
        start: Number of samples, summed over all processes, to skip at the start of the epoch.
    """

    start = 0

    def __iter__(self) -> Iterator[int]:
        """Yield every `world_size`-th sample of the epoch, starting at `start + rank`."""
        size = len(self.dataset)
        order = torch.arange(size)
        if self.shuffle:
            order = torch.randperm(size, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        indices = order.tolist()
        for place in range(self.start + self.rank, self.total_size, self.world_size):
            yield SampleIndex(indices[place % size], self.epoch)


@DATA_SAMPLERS.register_module()
class InfiniteSampler(engine.InfiniteSampler):
    """mmengine's infinite sampler, with the same order, that can start at any position.

    Attributes:
        start: Number of samples, summed over all processes, to skip at the start.
    """

    start = 0

    def __iter__(self) -> Iterator[int]:
        """Yield every `world_size`-th sample, starting at `start + rank`; each pass is an epoch."""
        return itertools.islice(self._all_processes(), self.start + self.rank, None, self.world_size)

    def _all_processes(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        for epoch in itertools.count():
            order = (
                torch.randperm(self.size, generator=generator) if self.shuffle else torch.arange(self.size)
            )
            yield from (SampleIndex(index, epoch) for index in order.tolist())


@DATA_SAMPLERS.register_module()
class AspectRatioBatchSampler(BatchSampler):
    """Batches of either landscape or portrait images only, to reduce padding.

    The remainders of both groups are mixed at the end of an epoch. The dataset of `sampler` must have
    `get_data_info(index)` with `width` and `height`. Square images count as portrait.
    """

    def __init__(self, sampler: Sampler, batch_size: int, drop_last: bool = False):
        super().__init__(sampler, batch_size, drop_last)

    def __iter__(self) -> Iterator[list[int]]:
        dataset = self.sampler.dataset  # type: ignore[union-attr]
        groups: tuple[list[int], list[int]] = ([], [])
        for index in self.sampler:
            info = dataset.get_data_info(index)
            group = groups[info['width'] > info['height']]
            group.append(index)
            if len(group) == self.batch_size:
                yield list(group)
                group.clear()
        rest = groups[0] + groups[1]
        for start in range(0, len(rest), self.batch_size):
            batch = rest[start : start + self.batch_size]
            if len(batch) == self.batch_size or not self.drop_last:
                yield batch


@DATA_SAMPLERS.register_module()
class ResumableBatchSampler(BatchSampler):
    """Batches of `SampleIndex` that can skip the first batches without loading them.

    The seed of a sample is derived from the run's seed, the epoch and the sample's index. Augmentations are therefore
    the same for any number of workers and processes, and a resume needs no generator state.

    Args:
        sampler: Sampler of dataset indices. Indices without an epoch of their own get `sampler.epoch`.
        batch_size: Number of samples per batch.
        batch_sampler: Config of the batch sampler that groups them; None for batches in the sampler's order.
        drop_last: Drop the last batch if it is incomplete.

    Attributes:
        seed: Seed of the run, the same in all processes.
        skip: Number of batches to skip at the start.
    """

    def __init__(
        self,
        sampler: Sampler,
        batch_size: int,
        batch_sampler: dict | None = None,
        drop_last: bool | None = None,
    ) -> None:
        super().__init__(sampler, batch_size, bool(drop_last))
        options: dict[str, Any] = {'sampler': sampler, 'batch_size': batch_size}
        if drop_last is not None:
            options['drop_last'] = drop_last
        self.batches = DATA_SAMPLERS.build(batch_sampler, default_args=options) if batch_sampler else None
        self.seed, self.skip = 0, 0

    def __iter__(self) -> Iterator[list[int]]:
        batches = super().__iter__() if self.batches is None else iter(self.batches)
        for batch in itertools.islice(batches, self.skip, None):
            yield [self._with_seed(index) for index in batch]

    def __len__(self) -> int:
        """Number of batches in a full epoch."""
        return super().__len__() if self.batches is None else len(self.batches)

    def _with_seed(self, index: int) -> SampleIndex:
        epoch = index.epoch if isinstance(index, SampleIndex) else getattr(self.sampler, 'epoch', 0)
        seed = derive_seed(self.seed, epoch, int(index))
        return SampleIndex(index, epoch, seed, getattr(index, 'batch_seed', None))
