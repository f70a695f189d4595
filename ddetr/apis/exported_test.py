"""Runner and config for the evaluation of exported files."""

from pathlib import Path
from typing import Any

from mmengine.config import Config
from torch import nn

from ddetr.datasets.coco_format import listing
from ddetr.datasets.formats import data_options
from ddetr.deployment import load
from ddetr.engine import DetRunner
from ddetr.engine.config import load_config
from ddetr.engine.saved_config import KEPT
from ddetr.registry import SCOPE
from ddetr.utils.errors import InputError

from .exported import ExportedDetector, test_pipeline


class ExportedRunner(DetRunner):
    """Runner for configs whose `model` contains only the `path` of an exported file."""

    def build_model(self, model: Any) -> nn.Module:
        """Load the exported file, without the registry, which would import all detectors."""
        return ExportedDetector(model['path'])


def exported_test_config(path: str | Path, config: str | Path | None, data: str | None) -> Config:
    """Build a config to evaluate an exported file.

    Args:
        path: Exported file, which provides test pipeline and classes.
        config: Config that provides test set and metrics; None for `data` with `CocoMetric`.
        data: Dataset folder that replaces the config's test set.

    Raises:
        InputError: Neither config nor data is given, or one of them or the file is invalid.
    """
    if config is None and data is None:
        raise InputError(f'{path} does not specify a dataset: pass --data DIR or a config.')
    # fail early if the file is invalid
    info = load(path).info
    given = load_config(config) if config is not None else Config(_without_config())
    cfg = Config({key: given[key] for key in KEPT if key in given})
    cfg['model'] = {'path': str(path)}
    if data is not None:
        loaders = {'train_dataloader': {'dataset': {'metainfo': {'classes': tuple(info.classes)}}}}
        found = data_options({**cfg, **loaders}, data)
        cfg.merge_from_dict({key: value for key, value in found.items() if key.startswith('test_')})
    dataset = _innermost(cfg.test_dataloader.dataset)
    *steps, pack = test_pipeline(info, path)
    boxes = [{'type': 'LoadAnnotations'}]  # for --show-dir
    steps = [step for step in steps if 'LoadAnnotations' not in str(step['type'])]
    dataset['pipeline'] = [*steps, *boxes, pack]
    if 'classes' not in (dataset.get('metainfo') or {}):
        dataset['metainfo'] = {**(dataset.get('metainfo') or {}), 'classes': tuple(info.classes)}
    named = tuple(dataset['metainfo']['classes'])
    if named != tuple(info.classes):
        raise InputError(
            f'{path} detects {listing(info.classes)}, but {data or config} has the classes {listing(named)}: use a '
            'dataset with the same classes in the same order.'
        )
    return cfg


def _without_config() -> dict[str, Any]:
    return {
        'default_scope': SCOPE,
        'test_dataloader': {
            'batch_size': 1,
            'num_workers': 2,
            'sampler': {'type': 'DefaultSampler', 'shuffle': False},
            'dataset': {'test_mode': True},
        },
        'test_evaluator': {'type': 'CocoMetric'},
        'test_cfg': {},
        'visualizer': {'type': 'DetLocalVisualizer'},
    }


def _innermost(dataset: Any) -> Any:
    while 'dataset' in dataset or 'datasets' in dataset:
        dataset = dataset.get('dataset') or dataset['datasets'][0]
    return dataset
