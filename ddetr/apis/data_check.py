"""The doctor (`ddetr.datasets.doctor`) for configs, and its short form at the start of a training."""

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
SPOILED_SHARE = 0.1  # of all boxes, from which on a training would learn wrong boxes
LINES = 5  # of the short form
SHORT_MIB = 50  # annotation files above this size are not read a second time: COCO's train2017 has 450 MB


def check_data(
    data: str | Path,
    *,
    images: bool = True,
    num_queries: int | None = None,
    sizes: Sequence[tuple[int, int]] | None = None,
    workers: int | None = None,
    cfg_options: Mapping[str, Any] | None = None,
) -> Report:
    """Find every fault of a dataset, given by its folder or by a config; see `ddetr.datasets.doctor.examine`.

    A config says the splits, the number of queries, the training sizes and the stride of the finest feature level.

    Raises:
        InputError: There is no such folder or config, or no dataset of a known format in it.
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
    """The datasets of a config's loaders as their files are written.

    Raises:
        InputError: The config has no dataset, or one of a type whose files are not known.
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
                    f'{name}_dataloader.dataset.type={dataset.get("type")!r} has no files that can be checked: '
                    'give the folder of a dataset in the format of COCO, VOC or YOLO.'
                )
            splits.append(split)
    if not splits:
        raise ConfigError('the config has no train_dataloader, val_dataloader or test_dataloader to check.')
    return splits


def written_split(dataset: Any, name: str) -> WrittenSplit | None:
    """A dataset's files as they are written; None for types of datasets whose files are not known."""
    return dataset.written_split()._replace(name=name) if isinstance(dataset, DetectionDataset) else None


def _plain_datasets(dataset: Any) -> Iterator[Mapping[str, Any]]:
    """A dataset's config, or those in its wrappers."""
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
    """The sizes that the training pipelines resize images to."""
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
    """Stride in pixels of the backbone's finest level, as far as the config says it."""
    backbone = cfg.get('model', {}).get('backbone', {})
    if backbone.get('out_strides'):
        return int(min(backbone['out_strides']))
    if 'depth' in backbone:  # ResNet and its relatives
        strides = backbone.get('strides', (1, 2, 2, 2))
        return 4 * int(math.prod(strides[: min(backbone.get('out_indices', (0,))) + 1]))
    return None


def check_before_training(runner: 'DetRunner') -> None:
    """Log what is wrong with the training and validation data, in a few lines; no image is opened.

    `check_data=False` in the config switches this off. Process 0 alone does it. Files above SHORT_MIB are passed over.

    Raises:
        ConfigError: So many boxes are wrong that a training would be worthless.
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
            except InputError:  # the dataset itself has read it: from elsewhere, by `backend_args`
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
        more = (
            f'python tools/data/doctor.py {config or "CONFIG"} shows them, check_data=False skips this check'
        )
        logger.warning('Dataset check (%s):\n  %s', more, '\n  '.join(lines))


def _require_sound(report: Report) -> None:
    total = sum(split.boxes for split in report.splits)
    for fault in report.faults:
        if fault.spoils and fault.count > SPOILED_SHARE * total:
            raise ConfigError(
                f'{fault.count} of {total} boxes: {fault.name}, for example {fault.examples[0].text}. '
                f'{fault.cure} check_data=False trains all the same.'
            )
