"""Samples that are made of several images: Mosaic, MixUp and the like."""

import copy
from collections.abc import Sequence
from typing import Any

from mmengine.dataset import BaseDataset
from torch.utils.data import Dataset

from ddetr.registry import DATASETS, TRANSFORMS
from ddetr.utils.errors import ConfigError

MAX_REFETCH = 15


@DATASETS.register_module()
class MultiImageMixDataset(Dataset):
    """Another dataset, with a pipeline whose transforms can ask for further samples of it.

    A transform with a method `get_indices(dataset)` finds the samples of these indices in `results['mix_results']`,
    processed by the inner dataset's own pipeline (loading, as a rule). Everything is drawn with the seed of the first
    sample (see `SeededDataset`).

    Args:
        dataset: The inner dataset or its config. Its pipeline must not end with `PackDetInputs`.
        pipeline: Transforms of the mixed sample, with `PackDetInputs` at the end.
        skip_type_keys: Types of transforms that are left out.
        skip_from_epoch: First epoch, from 0, in which they are left out; earlier ones use them. `YOLOXModeSwitchHook`
            sets it from the end of the training.
        max_refetch: Attempts, each with new draws, where a transform rejects a sample by returning None.

    Raises:
        ConfigError: A `skip_type_keys` that the pipeline does not have, or a transform that rejects every attempt.
    """

    def __init__(
        self,
        dataset: BaseDataset | dict,
        pipeline: Sequence[dict],
        skip_type_keys: Sequence[str] = (),
        skip_from_epoch: int = 0,
        max_refetch: int = MAX_REFETCH,
    ) -> None:
        self.dataset: Any = DATASETS.build(dataset) if isinstance(dataset, dict) else dataset
        self.steps = [(cfg['type'], TRANSFORMS.build(cfg)) for cfg in pipeline]
        self.max_refetch = max_refetch
        self.skip(skip_type_keys, skip_from_epoch)

    def skip(self, types: Sequence[str], from_epoch: int) -> None:
        """Leave transforms of these types out from an epoch on."""
        known = [kind for kind, _ in self.steps]
        if unknown := [kind for kind in types if kind not in known]:
            raise ConfigError(
                f'skip_type_keys names {unknown[0]!r}, but the pipeline of MultiImageMixDataset has only '
                f'{", ".join(map(str, known))}.'
            )
        self.skip_type_keys, self.skip_from_epoch = frozenset(types), from_epoch

    def __getitem__(self, index: int) -> Any:
        skipped: frozenset[str] = frozenset()
        if getattr(index, 'epoch', 0) >= self.skip_from_epoch:
            skipped = self.skip_type_keys
        results = copy.deepcopy(self.dataset[index])
        for kind, transform in self.steps:
            if kind not in skipped:
                results = self._apply(transform, results)
        return results

    def _apply(self, transform: Any, results: dict) -> dict:
        for _ in range(self.max_refetch):
            attempt = copy.deepcopy(results)
            if hasattr(transform, 'get_indices'):
                attempt['mix_results'] = [
                    copy.deepcopy(self.dataset[i]) for i in transform.get_indices(self.dataset)
                ]
            attempt = transform(attempt)
            if attempt is not None:
                attempt.pop('mix_results', None)
                return attempt
        raise ConfigError(
            f'{type(transform).__name__} rejected image id {results.get("img_id")} {self.max_refetch} times: relax '
            'it, or leave images without boxes out with filter_cfg=dict(filter_empty_gt=True).'
        )

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def metainfo(self) -> dict:
        """Of the inner dataset."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Read the inner dataset's annotations."""
        self.dataset.full_init()

    def get_data_info(self, index: int) -> dict:
        """The first image's size and path; a mixed sample may have another size."""
        return self.dataset.get_data_info(index)

    def get_cat_ids(self, index: int) -> list[int]:
        """Labels of the first image."""
        return self.dataset.get_cat_ids(index)
