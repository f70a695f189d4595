"""From a config file and a command's options to a Runner that is ready to train or test."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log

from ddetr.datasets.formats import data_options
from ddetr.engine import DetRunner, build_runner
from ddetr.engine.config import load_config, merge_options
from ddetr.engine.runner import LAST
from ddetr.engine.saved_config import find_checkpoint, saved_config
from ddetr.utils import CheckpointError, ConfigError, InputError
from ddetr.utils.machines import RESTARTED
from ddetr.weights import read_checkpoint, read_weights

from .data_check import check_before_training
from .exported import is_exported

LAUNCHED = 'LAUNCHED_AT'  # environment variable: when the command was started first, in seconds since 1970


class TrainOptions(NamedTuple):
    """What `ddetr train` takes beside the config."""

    work_dir: str | None = (
        None  # for logs and checkpoints; None: the config's, or `work_dirs/<config's name>`
    )
    resume: str | None = None  # training checkpoint to go on from, or 'auto' for the work directory's last
    allow_partial: bool = False  # take what fits of the weights of `load_from` and warn, instead of an error
    amp: bool = False  # mixed precision
    auto_scale_lr: bool = False  # scale the learning rate by the batch size that is really trained with
    launcher: str = 'none'  # or what started several processes: 'pytorch' (torchrun), 'slurm', 'mpi'
    cfg_options: Mapping[str, Any] = {}  # values by dotted config key
    amp_dtype: str | None = None  # 'float16' or 'bfloat16', also without `amp`
    data: str | None = None  # folder of a dataset, in place of the config's datasets and classes


class EvalOptions(NamedTuple):
    """What `ddetr test` takes beside config and checkpoint; see `TrainOptions` for what is not said here."""

    work_dir: str | None = None
    out: str | None = None  # JSON file for the detections, in COCO's result format
    show_dir: str | None = None  # folder for pictures of all images with their boxes
    score_thr: float = 0.3  # of the boxes in these pictures
    allow_partial: bool = False
    launcher: str = 'none'
    cfg_options: Mapping[str, Any] = {}
    data: str | None = None


def train_detector(config: str | Path, options: TrainOptions = TrainOptions()) -> DetRunner:  # noqa: B008 (immutable)
    """Train as a config says, by its path or the name of one that comes with ddetr; the Runner after training.

    Raises:
        InputError: Something in config or options cannot be used; nothing has been trained then.
    """
    amp = options.amp or options.amp_dtype is not None
    changes: dict[str, Any] = {'optim_wrapper.type': 'AmpOptimWrapper'} if amp else {}
    changes |= {'optim_wrapper.dtype': options.amp_dtype} if options.amp_dtype else {}
    changes |= {'auto_scale_lr.enable': True} if options.auto_scale_lr else {}
    cfg = _load(load_config(config), str(config), options, changes)
    if options.auto_scale_lr and 'base_batch_size' not in cfg.auto_scale_lr:
        raise ConfigError(
            f'--auto-scale-lr: config {config} does not say for which batch size its learning rate is meant; '
            'add auto_scale_lr=dict(base_batch_size=...).'
        )
    cfg.merge_from_dict(_start(cfg, options.resume))
    path = cfg.get('load_from')
    if (
        path and '://' not in path and not Path(path).expanduser().exists()
    ):  # before datasets and model are built
        raise CheckpointError(f'checkpoint {path} does not exist: check the path.')
    runner = build_runner(cfg, ['train', 'val'] if cfg.get('val_cfg') else ['train'])
    _require_objects(runner.train_loop.dataloader)
    check_before_training(runner)
    runner.train()
    return runner


def evaluate_detector(
    config: str | Path | None,
    checkpoint: str | Path,
    options: EvalOptions = EvalOptions(),  # noqa: B008 (immutable)
) -> dict[str, float]:
    """Evaluate a checkpoint on a config's test set; the metrics by name.

    Args:
        config: None for the config that a training checkpoint carries. An exported file needs none if `options` name
            the data; of a given one, it takes test set and metrics.
        checkpoint: File, also an exported one, or work directory.
        options: See there.

    Raises:
        InputError: Something in config, checkpoint or options cannot be used.
    """
    changes: dict[str, Any] = {}
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
    build = _exported_runner if is_exported(checkpoint) else _checkpoint_runner
    runner = build(config, checkpoint, options, changes)
    metrics = runner.test()
    if options.out is not None and runner.rank == 0:
        # CocoMetric names its file after what it evaluates
        Path(options.out).with_suffix('.bbox.json').replace(options.out)
    return metrics


def _checkpoint_runner(
    config: str | Path | None, checkpoint: str | Path, options: EvalOptions, changes: Mapping[str, Any]
) -> DetRunner:
    """A Runner that tests a checkpoint."""
    name = find_checkpoint(checkpoint)
    if config is None:
        content = read_checkpoint(name)
        # named after the training's work directory, as that is
        cfg = _load(saved_config(content, name), str(Path(name).absolute().parent), options, changes)
    else:
        cfg = _load(load_config(config), str(config), options, changes)
        content = read_checkpoint(name)
    cfg.merge_from_dict({'load_from': name, 'resume': False, **_learned_classes(cfg, name, content)})
    runner = build_runner(cfg, ['test'])
    runner.read_already = name, content
    return runner


def _exported_runner(
    config: str | Path | None, checkpoint: str | Path, options: EvalOptions, changes: Mapping[str, Any]
) -> DetRunner:
    """A Runner that tests an exported file."""
    from .exported_test import ExportedRunner, exported_test_config

    if options.launcher != 'none' or options.allow_partial:
        raise InputError(
            f'{checkpoint} is an exported file, which takes no --launcher and no --allow-partial.'
        )
    cfg = exported_test_config(checkpoint, config, options.data)
    cfg = _load(cfg, str(checkpoint), options._replace(data=None), changes)
    return build_runner(cfg, ['test'], ExportedRunner)


def _load(
    cfg: Config, source: str, options: TrainOptions | EvalOptions, changes: Mapping[str, Any]
) -> Config:
    """A config with what a command changes in it; `source` names the work directory, unless something else does."""
    if options.data is not None:
        cfg.merge_from_dict(data_options(cfg, options.data))
    merge_options(cfg, {**options.cfg_options, **changes, 'allow_partial': options.allow_partial}, source)
    where = options.work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(source).stem))
    cfg.merge_from_dict({'work_dir': where, 'launcher': options.launcher})
    return cfg


def _start(cfg: Config, resume: str | None) -> dict[str, Any]:
    """Where a training begins: `load_from` and `resume` for the Runner.

    `--resume` without a path, and `resume=True` in the config, mean the last checkpoint of the work directory. A run
    that a launcher has restarted goes on from the last checkpoint that it saved itself, whatever it began with.
    """
    noted = Path(cfg.work_dir, LAST)
    if _restarted() and noted.exists() and noted.stat().st_mtime >= float(os.environ[LAUNCHED]):
        return {'load_from': str(_noted_checkpoint(noted)), 'resume': True}
    if resume not in (None, 'auto'):
        return {'load_from': resume, 'resume': True}
    if resume is None and not cfg.get('resume'):
        return {'resume': False}
    if resume is None and cfg.get('load_from'):
        return {'resume': True}
    if not noted.exists():
        print_log(
            f'--resume: no checkpoint in {cfg.work_dir} yet, training starts anew.', level=logging.WARNING
        )
        return {'resume': False}
    return {'load_from': str(_noted_checkpoint(noted)), 'resume': True}


def _restarted() -> bool:
    """Whether torchrun or Slurm runs the same command again; tools/launch.sh notes when it ran first."""
    again = RESTARTED in os.environ or int(os.environ.get('SLURM_RESTART_COUNT', '0'))
    return LAUNCHED in os.environ and bool(again)


def _noted_checkpoint(noted: Path) -> Path:
    """The checkpoint that `last_checkpoint` names, in its own folder even if that was moved: the path is absolute."""
    named = Path(noted.read_text().strip())
    for path in (noted.parent / named.name, named):
        if path.is_file():
            return path
    others = sorted(noted.parent.glob('[!.]*.pth'), key=lambda path: path.stat().st_mtime)
    others = [path for path in others if not path.name.startswith('best_')]  # these have no optimizer
    hint = f'go on from the newest that is left, --resume {others[-1]}' if others else 'none is left'
    raise CheckpointError(f'{noted} names {named}, which does not exist: {hint}.')


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
            f'train_dataloader: {len(dataset)} images make no batch of '
            f'batch_size={loader.batch_sampler.batch_size} with drop_last=True; use smaller batches or drop_last=False.'
        )
    items = (dataset.get_data_info(index) for index in range(len(dataset)))
    if hasattr(dataset, 'get_data_info') and not any(item.get('instances', True) for item in items):
        raise ConfigError(
            f'train_dataloader.dataset: none of its {len(dataset)} images has a box of its classes to train on; check '
            'ann_file and metainfo.classes in the config.'
        )
