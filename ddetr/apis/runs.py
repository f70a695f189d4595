"""From a config file and a command's options to a Runner that is ready to train or test."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log
from mmengine.runner import find_latest_checkpoint

from ddetr.engine import DetRunner, build_runner
from ddetr.engine.config import load_config
from ddetr.utils import CheckpointError, ConfigError, InputError
from ddetr.weights import read_checkpoint, read_weights


class TrainOptions(NamedTuple):
    """What `tools/train.py` takes beside the config.

    Attributes:
        work_dir: of logs and checkpoints; the config's, or `work_dirs/<config's name>`, if None.
        resume: a training checkpoint to go on from, or 'auto' for the work directory's last.
        allow_partial: take what fits of the weights of `load_from`, and warn, instead of refusing a file that does
            not fit altogether.
        amp: mixed precision.
        auto_scale_lr: scale the learning rate by the batch size that is really trained with.
        launcher: 'none', or what started several processes: 'pytorch' (torchrun), 'slurm', 'mpi'.
        cfg_options: values by dotted config key.
    """

    work_dir: str | None = None
    resume: str | None = None
    allow_partial: bool = False
    amp: bool = False
    auto_scale_lr: bool = False
    launcher: str = 'none'
    cfg_options: Mapping[str, Any] = {}


class EvalOptions(NamedTuple):
    """What `tools/test.py` takes beside config and checkpoint.

    Attributes:
        work_dir: as in training.
        out: a JSON file for the detections, in COCO's result format.
        show_dir: a folder for pictures of all images with their boxes.
        score_thr: of the boxes in these pictures.
        allow_partial: as in training, for the checkpoint.
        launcher: as in training.
        cfg_options: values by dotted config key.
    """

    work_dir: str | None = None
    out: str | None = None
    show_dir: str | None = None
    score_thr: float = 0.3
    allow_partial: bool = False
    launcher: str = 'none'
    cfg_options: Mapping[str, Any] = {}


def train_detector(config: str | Path, options: TrainOptions) -> DetRunner:
    """Train as a config says.

    Returns:
        The Runner after training.

    Raises:
        InputError: something in config or options cannot be used; nothing has been trained then.
    """
    changes = dict(options.cfg_options)
    if options.amp:
        changes['optim_wrapper.type'] = 'AmpOptimWrapper'
    if options.auto_scale_lr:
        changes['auto_scale_lr.enable'] = True
    changes['allow_partial'] = options.allow_partial
    cfg = _load(config, changes, options.work_dir, options.launcher)
    if options.auto_scale_lr and 'base_batch_size' not in cfg.auto_scale_lr:
        raise ConfigError(
            f'--auto-scale-lr: config {config} does not say for which batch size its learning rate is meant; '
            'add auto_scale_lr=dict(base_batch_size=...).'
        )
    cfg.merge_from_dict(_start(cfg, options.resume))
    if cfg.get('load_from'):
        _require(cfg.load_from)
    loops = ['train', 'val'] if cfg.get('val_cfg') else ['train']
    runner = build_runner(cfg, loops)
    _require_objects(runner.train_loop.dataloader)
    runner.train()
    return runner


def evaluate_detector(config: str | Path, checkpoint: str | Path, options: EvalOptions) -> dict[str, float]:
    """Evaluate a checkpoint on a config's test set.

    Returns:
        The metrics by name.

    Raises:
        InputError: something in config, checkpoint or options cannot be used.
    """
    changes = dict(options.cfg_options)
    if options.out is not None:
        if Path(options.out).suffix != '.json':
            raise InputError(f'--out {options.out}: detections are written as JSON, name a .json file.')
        changes['test_evaluator.outfile_prefix'] = str(Path(options.out).with_suffix(''))
    if options.show_dir is not None:
        changes['default_hooks.visualization'] = {
            'type': 'DetVisualizationHook',
            'draw': True,
            'test_out_dir': options.show_dir,
            'score_thr': options.score_thr,
        }
    changes['allow_partial'] = options.allow_partial
    cfg = _load(config, changes, options.work_dir, options.launcher)
    name = str(checkpoint)
    content = read_checkpoint(name)
    cfg.merge_from_dict({'load_from': name, 'resume': False, **_learned_classes(cfg, name, content)})
    runner = build_runner(cfg, ['test'])
    runner.read_already = name, content
    metrics = runner.test()
    if options.out is not None and runner.rank == 0:
        # CocoMetric names its file after what it evaluates
        Path(options.out).with_suffix('.bbox.json').replace(options.out)
    return metrics


def _load(config: str | Path, changes: Mapping[str, Any], work_dir: str | None, launcher: str) -> Config:
    cfg = load_config(config, changes)
    where = work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(config).stem))
    cfg.merge_from_dict({'work_dir': where, 'launcher': launcher})
    return cfg


def _start(cfg: Config, resume: str | None) -> dict[str, Any]:
    """Where a training begins: `load_from` and `resume` for the Runner.

    `--resume` without a path, and `resume=True` in the config, mean the last checkpoint of the work directory. It
    is looked for there even if the folder was moved: mmengine notes an absolute path in `last_checkpoint`.
    """
    if resume not in (None, 'auto'):
        return {'load_from': resume, 'resume': True}
    if resume is None and not cfg.get('resume'):
        return {'resume': False}
    if resume is None and cfg.get('load_from'):
        return {'resume': True}
    noted = find_latest_checkpoint(cfg.work_dir)
    if noted is None:
        print_log(
            f'--resume: no checkpoint in {cfg.work_dir} yet, training starts anew.', level=logging.WARNING
        )
        return {'resume': False}
    moved = Path(cfg.work_dir, Path(noted).name)
    return {'load_from': str(moved if moved.exists() else noted), 'resume': True}


def _learned_classes(cfg: Config, checkpoint: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Number the test set's classes as the checkpoint does, unless the config itself says how."""
    dataset = cfg.test_dataloader.dataset
    if 'ann_file' not in dataset or 'classes' in dataset.get('metainfo', {}):
        return {}
    classes = read_weights(checkpoint, content, strict=False).classes
    return {} if classes is None else {'test_dataloader.dataset.metainfo.classes': classes}


def _require_objects(loader: Any) -> None:
    """Refuse to train on no batch, or on a dataset without any object, which would teach a detector to find nothing."""
    dataset = loader.dataset
    if not len(loader):
        raise ConfigError(
            f'train_dataloader: {len(dataset)} images make no batch of batch_size={loader.batch_size} with '
            'drop_last=True; use smaller batches or drop_last=False.'
        )
    items = (dataset.get_data_info(index) for index in range(len(dataset)))
    if hasattr(dataset, 'get_data_info') and not any(item.get('instances', True) for item in items):
        raise ConfigError(
            f'train_dataloader.dataset: none of its {len(dataset)} images has a box of its classes to train on; check '
            'ann_file and metainfo.classes in the config.'
        )


def _require(checkpoint: str) -> None:
    """Fail early, before datasets and model are built."""
    if '://' not in checkpoint and not Path(checkpoint).expanduser().exists():
        raise CheckpointError(f'checkpoint {checkpoint} does not exist: check the path.')
