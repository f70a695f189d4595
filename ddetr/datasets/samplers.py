"""How images are grouped into batches."""

from collections.abc import Iterator

from torch.utils.data import BatchSampler, Sampler

from ddetr.registry import DATA_SAMPLERS


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
