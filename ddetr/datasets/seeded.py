"""Dataset wrapper that makes random draws depend only on the sample."""

from typing import Any

from torch.utils.data import Dataset

from ddetr.registry import DATASETS
from ddetr.structures import DetDataSample
from ddetr.utils.seeding import seeded


@DATASETS.register_module()
class SeededDataset(Dataset):
    """Dataset wrapper that seeds the random generators from the index, a `SampleIndex` (samplers.py).

    A plain integer index leaves the generators alone. The `DetDataSample` of a seeded item, if there is one, stores
    the seed as `draw_seed` for random draws in the model. All attributes are those of the wrapped dataset.

    Args:
        dataset: The dataset to wrap, or its config.
    """

    dataset: Any

    def __init__(self, dataset: Any) -> None:
        object.__setattr__(self, 'dataset', DATASETS.build(dataset) if isinstance(dataset, dict) else dataset)

    def __getitem__(self, index: int) -> Any:
        seed = getattr(index, 'draw_seed', None)
        if seed is None:
            return self.dataset[index]
        with seeded(seed):
            item = self.dataset[index]
        sample = item.get('data_samples') if isinstance(item, dict) else None
        if isinstance(sample, DetDataSample):
            sample.set_metainfo({'draw_seed': seed})
        return item

    def __len__(self) -> int:
        return len(self.dataset)

    def __getattr__(self, name: str) -> Any:
        if name == 'dataset' or name.startswith('__'):  # not set yet during unpickling in a worker
            raise AttributeError(name)
        return getattr(self.dataset, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.dataset, name, value)
