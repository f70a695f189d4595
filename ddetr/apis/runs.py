"""Train and test with a config file and command-line options."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mmengine.config import Config
from mmengine.logging import print_log

from ddetr.datasets.formats import data_options
from ddetr.engine.config import load_config, merge_options
from ddetr.engine.saved_config import LAST, find_checkpoint, saved_config
from ddetr.utils import CheckpointError, ConfigError, InputError
from ddetr.utils.machines import RESTARTED
from ddetr.weights import read_checkpoint, read_weights

from .data_check import check_before_training
from .exported import is_exported

if TYPE_CHECKING:
    from ddetr.engine import DetRunner

LAUNCHED = 'LAUNCHED_AT'  # environment variable: time of the first launch, in seconds since the epoch


class TrainOptions(NamedTuple):
    """Options of `ddetr train`, other than the config."""

    work_dir: str | None = (
        None  # folder for logs and checkpoints; None: the config's, or `work_dirs/<config name>`
    )
    resume: str | None = (
        None  # training checkpoint to resume from; 'auto': the last one in the work directory
    )
    allow_partial: bool = (
        False  # load only matching weights of `load_from` and warn, instead of raising an error
    )
    amp: bool = False  # automatic mixed precision
    auto_scale_lr: bool = False  # scale the learning rate to the actual batch size
    launcher: str = 'none'  # distributed launcher: 'pytorch' (torchrun), 'slurm', 'mpi'
    cfg_options: Mapping[str, Any] = {}  # values by dotted config key
    amp_dtype: str | None = None  # 'float16' or 'bfloat16'; implies `amp`
    data: str | None = None  # dataset folder that replaces the config's datasets and classes


class EvalOptions(NamedTuple):
    """Options of `ddetr test`, other than config and checkpoint; see also `TrainOptions`."""

    work_dir: str | None = None
    out: str | None = None  # JSON file for the detections, in COCO result format
    show_dir: str | None = None  # folder for annotated images
    score_thr: float = 0.3  # minimum score of the drawn boxes
    allow_partial: bool = False
    launcher: str = 'none'
    cfg_options: Mapping[str, Any] = {}
    data: str | None = None


def train_detector(config: str | Path, options: TrainOptions = TrainOptions()) -> 'DetRunner':  # noqa: B008 (immutable)
    """Train a detector with a config, given by path or by the name of a shipped one. Return the Runner.

    Raises:
        InputError: The config or options are invalid; training has not started.
    """
    from ddetr.engine import build_runner

    amp = options.amp or options.amp_dtype is not None
    changes: dict[str, Any] = {'optim_wrapper.type': 'AmpOptimWrapper'} if amp else {}
    changes |= {'optim_wrapper.dtype': options.amp_dtype} if options.amp_dtype else {}
    changes |= {'auto_scale_lr.enable': True} if options.auto_scale_lr else {}
    cfg = _load(load_config(config), str(config), options, changes)
    if options.auto_scale_lr and 'base_batch_size' not in cfg.auto_scale_lr:
        raise ConfigError(
            f'--auto-scale-lr: config {config} does not define the batch size of its learning rate: add '
            'auto_scale_lr=dict(base_batch_size=...).'
        )
    cfg.merge_from_dict(_start(cfg, options.resume))
    path = cfg.get('load_from')
    if (
        path and '://' not in path and not Path(path).expanduser().exists()
    ):  # fail early, before building datasets and the model
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
    """Evaluate a checkpoint on a config's test set. Return the metrics by name.

    Args:
        config: Config file, or None for the config stored in a training checkpoint. For exported files it provides
            the test set and metrics, and may be None if `options.data` is given.
        checkpoint: Checkpoint, exported file or work directory.
        options: See `EvalOptions`.

    Raises:
        InputError: The config, checkpoint or options are invalid.
    """
    changes: dict[str, Any] = {}
    if options.out is not None:
        if Path(options.out).suffix != '.json':
            raise InputError(f'--out {options.out}: detections are written as JSON, use a .json file.')
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
    metrics: dict[str, float] = runner.test()
    if options.out is not None and runner.rank == 0:
        # CocoMetric appends .bbox.json
        Path(options.out).with_suffix('.bbox.json').replace(options.out)
    return metrics


def _checkpoint_runner(
    config: str | Path | None, checkpoint: str | Path, options: EvalOptions, changes: Mapping[str, Any]
) -> 'DetRunner':
    """Build a Runner to test a checkpoint."""
    from ddetr.engine import build_runner

    name = find_checkpoint(checkpoint)
    if config is None:
        content = read_checkpoint(name)
        # the default work directory has the name of the checkpoint's folder
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
) -> 'DetRunner':
    """Build a Runner to test an exported file."""
    from ddetr.engine import build_runner

    from .exported_test import ExportedRunner, exported_test_config

    if options.launcher != 'none' or options.allow_partial:
        raise InputError(f'{checkpoint} is an exported file: --launcher and --allow-partial do not apply.')
    cfg = exported_test_config(checkpoint, config, options.data)
    cfg = _load(cfg, str(checkpoint), options._replace(data=None), changes)
    return build_runner(cfg, ['test'], ExportedRunner)


def _load(
    cfg: Config, source: str, options: TrainOptions | EvalOptions, changes: Mapping[str, Any]
) -> Config:
    """Apply command-line options to a config; the default work directory is named after `source`."""
    if options.data is not None:
        cfg.merge_from_dict(data_options(cfg, options.data))
    merge_options(cfg, {**options.cfg_options, **changes, 'allow_partial': options.allow_partial}, source)
    where = options.work_dir or cfg.get('work_dir') or str(Path('work_dirs', Path(source).stem))
    cfg.merge_from_dict({'work_dir': where, 'launcher': options.launcher})
    return cfg


def _start(cfg: Config, resume: str | None) -> dict[str, Any]:
    """Determine `load_from` and `resume` for the Runner.

    `--resume` without a path, and `resume=True` in the config, refer to the last checkpoint in the work directory. A
    run restarted by a launcher continues from the last checkpoint that it saved, regardless of its initial start.
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
            f'--resume: no checkpoint in {cfg.work_dir}, training starts from scratch.', level=logging.WARNING
        )
        return {'resume': False}
    return {'load_from': str(_noted_checkpoint(noted)), 'resume': True}


def _restarted() -> bool:
    """Whether torchrun or Slurm restarted this command; tools/launch.sh records the time of the first launch."""
    again = RESTARTED in os.environ or int(os.environ.get('SLURM_RESTART_COUNT', '0'))
    return LAUNCHED in os.environ and bool(again)


def _noted_checkpoint(noted: Path) -> Path:
    """Checkpoint named by `last_checkpoint`. The recorded path is absolute, so look in the file's own folder first."""
    named = Path(noted.read_text().strip())
    for path in (noted.parent / named.name, named):
        if path.is_file():
            return path
    others = sorted(noted.parent.glob('[!.]*.pth'), key=lambda path: path.stat().st_mtime)
    others = [path for path in others if not path.name.startswith('best_')]  # these have no optimizer state
    hint = f'use the newest one available, --resume {others[-1]}' if others else 'no other one is available'
    raise CheckpointError(f'{noted} names {named}, which does not exist: {hint}.')


def _learned_classes(cfg: Config, checkpoint: str, content: Mapping[str, Any]) -> dict[str, Any]:
    """Use the checkpoint's class order for the test set, unless the config defines it."""
    dataset = cfg.test_dataloader.dataset
    if 'ann_file' not in dataset or 'classes' in dataset.get('metainfo', {}):
        return {}
    classes = read_weights(checkpoint, content, strict=False).classes
    return {} if classes is None else {'test_dataloader.dataset.metainfo.classes': classes}


def _require_objects(loader: Any) -> None:
    """Raise ConfigError if the loader has no batches or the training set contains no objects."""
    dataset = loader.dataset
    if not len(loader):
        raise ConfigError(
            f'train_dataloader: {len(dataset)} images make no batch of '
            f'batch_size={loader.batch_sampler.batch_size} with drop_last=True; use smaller batches or drop_last=False.'
        )
    items = (dataset.get_data_info(index) for index in range(len(dataset)))
    if hasattr(dataset, 'get_data_info') and not any(item.get('instances', True) for item in items):
        raise ConfigError(
            f'train_dataloader.dataset: none of the {len(dataset)} images has a box of the given classes: check '
            'ann_file and metainfo.classes in the config.'
        )
