"""Batch sampler that groups images of similar size to reduce padding."""

from collections.abc import Iterator

import numpy as np
from torch.utils.data import BatchSampler, Sampler

from ddetr.registry import DATA_SAMPLERS

from .samplers import SampleIndex


@DATA_SAMPLERS.register_module()
class SimilarSizeBatchSampler(BatchSampler):
    """Batches of images with similar aspect ratios that share their random resizes and crops.

    The images of every `window` consecutive batches are sorted by aspect ratio and split into batches, which are then
    shuffled. Each batch has one seed, derived from the sampler's seed, the epoch and the batch's position; its images
    use it for all draws that affect their size (`drawn_for_batch`). The distribution of sizes and crops of a single
    image is unchanged, but the images of a batch are no longer independent. mmengine's samplers have the same seed on
    all ranks, so the k-th batches of all ranks share their draws too, and no rank waits for one with larger images.

    Args:
        sampler: Sampler whose dataset has `get_data_info(index)` with `width` and `height`.
        batch_size: Number of images per batch.
        drop_last: Drop the last images of the sampler if they do not fill a batch.
        window: Number of batches that are sorted together; a larger window means less padding but less randomness.
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
