"""The order of images, how they are grouped into batches, and where that goes on after a resume."""

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from mmengine import dataset as engine
from torch.utils.data import BatchSampler, Sampler

from ddetr.registry import DATA_SAMPLERS
from ddetr.utils.seeding import derive_seed


class SampleIndex(int):
    """An index into a dataset, with its epoch and the seeds of random draws.

    Attributes:
        epoch: The epoch that the sample belongs to.
        draw_seed: Seed of what is drawn for this sample alone.
        batch_seed: Seed of what the images of a batch draw alike (transforms/batch_draws.py).
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

    def __getnewargs__(self) -> tuple:  # pickled on the way to a worker
        return int(self), self.epoch, self.draw_seed, self.batch_seed


@DATA_SAMPLERS.register_module()
class DefaultSampler(engine.DefaultSampler):
    """mmengine's sampler of one epoch, in the same order, that can begin in the middle of it.

    Attributes:
        start: Samples of the epoch, counted over all processes, that are left out at its beginning.
    """

    start = 0

    def __iter__(self) -> Iterator[int]:
        """Every `world_size`-th sample of the epoch's order from `start + rank` on."""
        size = len(self.dataset)
        order = torch.arange(size)
        if self.shuffle:
            order = torch.randperm(size, generator=torch.Generator().manual_seed(self.seed + self.epoch))
        indices = order.tolist()
        for place in range(self.start + self.rank, self.total_size, self.world_size):
            yield SampleIndex(indices[place % size], self.epoch)


@DATA_SAMPLERS.register_module()
class InfiniteSampler(engine.InfiniteSampler):
    """mmengine's endless sampler, in the same order, that can begin anywhere.

    Attributes:
        start: Samples, counted over all processes, that are left out at the beginning.
    """

    start = 0

    def __iter__(self) -> Iterator[int]:
        """Every `world_size`-th sample from `start + rank` on; its epoch is the number of its pass."""
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
    """Batches of images that are all wider than high, or all not, so that less of a batch is padding.

    What is left of the two groups at the end of an epoch is mixed. The dataset of `sampler` has `get_data_info(index)`
    with `width` and `height`.
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
    """Batches of `SampleIndex`, of which the first can be left out without loading them.

    The seed of a sample follows from the run's seed, the epoch and the sample's index, so that augmentations are the
    same for every number of workers and processes, and need no state to go on with.

    Args:
        sampler: Gives indices. Without epochs of their own they are of `sampler.epoch`.
        batch_size: Samples in a batch.
        batch_sampler: Config of the batch sampler that groups them; None for batches in the sampler's order.
        drop_last: Leave out a last batch that is not full.

    Attributes:
        seed: The run's, the same in all processes.
        skip: Batches that are left out at the beginning.
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
        """Batches of a whole epoch."""
        return super().__len__() if self.batches is None else len(self.batches)

    def _with_seed(self, index: int) -> SampleIndex:
        epoch = index.epoch if isinstance(index, SampleIndex) else getattr(self.sampler, 'epoch', 0)
        seed = derive_seed(self.seed, epoch, int(index))
        return SampleIndex(index, epoch, seed, getattr(index, 'batch_seed', None))
