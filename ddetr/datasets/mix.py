"""Samples composed of several images, for Mosaic, MixUp and similar augmentations."""

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
    """Dataset wrapper whose transforms can request additional samples.

    If a transform has a method `get_indices(dataset)`, it finds the samples with these indices in
    `results['mix_results']`, processed by the inner dataset's own pipeline (usually just loading). All random draws
    use the seed of the first sample (see `SeededDataset`).

    Args:
        dataset: The inner dataset or its config. Its pipeline must not end with `PackDetInputs`.
        pipeline: Transforms of the mixed sample, ending with `PackDetInputs`.
        skip_type_keys: Types of transforms to skip.
        skip_from_epoch: First epoch, counted from 0, in which they are skipped. `YOLOXModeSwitchHook` sets it
            relative to the end of training.
        max_refetch: Number of attempts, each with new random draws, when a transform rejects a sample by returning
            None.

    Raises:
        ConfigError: `skip_type_keys` names a transform that is not in the pipeline, or a transform rejects every
            attempt.
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
        """Skip transforms of these types from the given epoch on."""
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
            'it, or drop images without boxes with filter_cfg=dict(filter_empty_gt=True).'
        )

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def metainfo(self) -> dict:
        """Metainfo of the inner dataset."""
        return self.dataset.metainfo

    def full_init(self) -> None:
        """Read the inner dataset's annotations."""
        self.dataset.full_init()

    def get_data_info(self, index: int) -> dict:
        """Return the size and path of the first image; the mixed sample may have a different size."""
        return self.dataset.get_data_info(index)

    def get_cat_ids(self, index: int) -> list[int]:
        """Return the labels in the first image."""
        return self.dataset.get_cat_ids(index)
