"""Batches of images that end up with similar sizes, so that little of a batch is padding."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import BatchSampler, Sampler

from ddetr.registry import DATA_SAMPLERS

from .samplers import SampleIndex


@DATA_SAMPLERS.register_module()
class SimilarSizeBatchSampler(BatchSampler):
    """Batches of similar aspect ratio whose images are resized and cropped by the same draws.

    Of every `window` batches' images in the sampler's order, neighbours by aspect ratio make a batch; the batches come
    in random order. A batch has one seed, made of the sampler's seed, the epoch and the batch's number, by which its
    images draw what decides on their sizes (`drawn_for_batch`). Each image keeps its distribution of sizes and crops;
    that of its neighbours depends on its own. With the same seed on all ranks, which mmengine's samplers have, the
    k-th batches of all ranks share their draws too, so that no rank waits for one with larger images.

    Args:
        sampler: Its dataset has `get_data_info(index)` with `width` and `height`.
        batch_size: Images in a batch.
        drop_last: Leave out the images that the sampler gives last and that do not fill a batch.
        window: Batches that are made at once; more pad less and keep less of the sampler's order.
    """

    def __init__(self, sampler: Sampler, batch_size: int, drop_last: bool = False, window: int = 100) -> None:
        super().__init__(sampler, batch_size, drop_last)
        self.window = window

    def __iter__(self) -> Iterator[list[int]]:
        epoch = getattr(self.sampler, 'epoch', 0)
        key = getattr(self.sampler, 'seed', 0), epoch
        for count, batch in enumerate(self._batches(np.random.default_rng(key))):
            seed = int(np.random.SeedSequence((*key, count)).generate_state(1)[0])
            yield [SampleIndex(index, getattr(index, 'epoch', epoch), batch_seed=seed) for index in batch]

    def _batches(self, generator: np.random.Generator) -> Iterator[list[int]]:
        indices: list[int] = []
        for index in self.sampler:
            indices.append(index)
            if len(indices) == self.window * self.batch_size:
                yield from self._group(indices, generator)
                indices = []
        if self.drop_last:
            indices = indices[: len(indices) // self.batch_size * self.batch_size]
        yield from self._group(indices, generator)

    def _group(self, indices: list[int], generator: np.random.Generator) -> list[list[int]]:
        ordered = sorted(indices, key=self._aspect_ratio)
        batches = [ordered[i : i + self.batch_size] for i in range(0, len(ordered), self.batch_size)]
        return [batches[i] for i in generator.permutation(len(batches))]

    def _aspect_ratio(self, index: int) -> float:
        info = self.sampler.dataset.get_data_info(index)  # type: ignore[union-attr]
        return info['width'] / info['height']
