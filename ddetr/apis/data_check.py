"""Dataset checks (`ddetr.datasets.doctor`) for configs, and a short version at the start of training."""

import math
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mmengine.config import Config
from mmengine.logging import MMLogger

from ddetr.datasets.detection import DetectionDataset
from ddetr.datasets.doctor import Report, examine
from ddetr.datasets.formats import WrittenSplit
from ddetr.engine.config import load_config
from ddetr.registry import DATASETS
from ddetr.utils import ConfigError, InputError

if TYPE_CHECKING:
    from ddetr.engine import DetRunner

SPLITS = ('train', 'val', 'test')
SPOILED_SHARE = 0.1  # fraction of wrong boxes above which training does not start
LINES = 5  # maximum number of lines in the short version
SHORT_MIB = 50  # larger annotation files are not read a second time: COCO train2017 has 450 MB


def check_data(
    data: str | Path,
    *,
    images: bool = True,
    num_queries: int | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    workers: int | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> Report:
    """Find all faults of a dataset, given by its folder or by a config; see `ddetr.datasets.doctor.examine`.

    A config provides the splits, the number of queries, the training sizes and the stride of the finest feature level.

    Raises:
        InputError: The folder or config does not exist, or contains no dataset in a supported format.
    """
    if Path(data).suffix != '.py':
        return examine(data, images=images, num_queries=num_queries, sizes=sizes, workers=workers)
    cfg = load_config(data, cfg_options)
    return examine(
        splits_of_config(cfg),
        images=images,
        num_queries=num_queries or _num_queries(cfg),
        sizes=sizes or _sizes(cfg),
        stride=_stride(cfg),
        workers=workers,
    )


def splits_of_config(cfg: Config) -> list[WrittenSplit]:
    """Dataset splits of a config's loaders, as stored in their files.

    Raises:
        InputError: The config has no dataset, or one of a type that cannot be checked.
    """
    splits: list[WrittenSplit] = []
    datasets = {name: (cfg.get(f'{name}_dataloader') or {}).get('dataset') for name in SPLITS}
    if datasets['test'] == datasets['val']:
        del datasets['test']
    for name, outer in datasets.items():
        for dataset in _plain_datasets(outer):
            split = written_split(DATASETS.build({**dataset, 'lazy_init': True, 'pipeline': []}), name)
            if split is None:
                raise ConfigError(
                    f'{name}_dataloader.dataset.type={dataset.get("type")!r} cannot be checked: pass the folder of a '
                    'dataset in COCO, VOC or YOLO format.'
                )
            splits.append(split)
    if not splits:
        raise ConfigError('the config has no train_dataloader, val_dataloader or test_dataloader to check.')
    return splits


def written_split(dataset: Any, name: str) -> WrittenSplit | None:
    """Dataset split as stored in its files; None for dataset types that cannot be checked."""
    return dataset.written_split()._replace(name=name) if isinstance(dataset, DetectionDataset) else None


def _plain_datasets(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """Yield the innermost dataset configs, without wrappers."""
    if dataset is None:
        return
    inner = [dataset['dataset']] if 'dataset' in dataset else dataset.get('datasets')
    if inner is None:
        yield dataset
    for each in inner or ():
        yield from _plain_datasets(each)


def _num_queries(cfg: Config) -> int | None:
    number = cfg.get('model', {}).get('num_queries')
    return number if isinstance(number, int) else None


def _sizes(cfg: Config) -> tuple[tuple[int, int], ...]:
    """Sizes (long, short) to which the training pipelines resize images."""
    return tuple(dict.fromkeys(_scales(cfg.get('train_dataloader', {}))))


def _scales(value: Any) -> Iterator[tuple[int, int]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            if key in ('scale', 'scales', 'img_scale'):
                pairs = [inner] if all(isinstance(side, int) for side in _items(inner)) else _items(inner)
                yield from ((max(p), min(p)) for p in pairs if len(_items(p)) == 2 and min(p) > 0)
            else:
                yield from _scales(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _scales(inner)


def _items(value: Any) -> Sequence[Any]:
    return value if isinstance(value, (list, tuple)) else ()


def _stride(cfg: Config) -> int | None:
    """Stride of the backbone's finest level in pixels; None if the config does not determine it."""
    backbone = cfg.get('model', {}).get('backbone', {})
    if backbone.get('out_strides'):
        return int(min(backbone['out_strides']))
    if 'depth' in backbone:  # ResNet and its variants
        strides = backbone.get('strides', (1, 2, 2, 2))
        return 4 * int(math.prod(strides[: min(backbone.get('out_indices', (0,))) + 1]))
    return None


def check_before_training(runner: 'DetRunner') -> None:
    """Log a short summary of faults in the training and validation data, without opening images.

    Runs on rank 0 and skips annotation files above SHORT_MIB. `check_data=False` in the config disables it.

    Raises:
        ConfigError: More than `SPOILED_SHARE` of the boxes have a fault that makes training useless.
    """
    if not runner.cfg.get('check_data', True) or runner.rank != 0:
        return
    loops = {'train': runner.train_loop, 'val': runner.val_loop if runner.cfg.get('val_cfg') else None}
    splits = []
    for name, loop in loops.items():
        for dataset in _innermost(loop.dataloader.dataset) if loop else ():
            if _is_large(getattr(dataset, 'ann_file', '')):
                continue
            try:
                split = written_split(dataset, name)
            except InputError:  # the dataset was read through `backend_args`, for example from a remote store
                split = None
            splits += [split] if split is not None else []
    if splits:
        report = examine(splits, images=False, num_queries=_num_queries(runner.cfg), sizes=_sizes(runner.cfg))
        _log(report, runner.logger, runner.cfg.filename)
        _require_sound(report)


def _is_large(ann_file: str) -> bool:
    return os.path.isfile(ann_file) and os.path.getsize(ann_file) > SHORT_MIB * 2**20


def _innermost(dataset: Any) -> Iterator[Any]:
    inner = [dataset.dataset] if hasattr(dataset, 'dataset') else getattr(dataset, 'datasets', None)
    if inner is None:
        yield dataset
    for each in inner or ():
        yield from _innermost(each)


def _log(report: Report, logger: MMLogger, config: str | None) -> None:
    faults = [*report.of('error'), *report.of('warning')]
    lines = [f'{fault.severity}: {fault.name}: {fault.count}' for fault in faults[:LINES]]
    lines += [f'and {len(faults) - LINES} more'] if len(faults) > LINES else []
    if lines:
        more = f'python tools/data/doctor.py {config or "CONFIG"} shows details, check_data=False disables this check'
        logger.warning('Dataset check (%s):\n  %s', more, '\n  '.join(lines))


def _require_sound(report: Report) -> None:
    total = sum(split.boxes for split in report.splits)
    for fault in report.faults:
        if fault.spoils and fault.count > SPOILED_SHARE * total:
            raise ConfigError(
                f'{fault.count} of {total} boxes: {fault.name}, for example {fault.examples[0].text}. '
                f'{fault.cure} Set check_data=False to train anyway.'
            )
