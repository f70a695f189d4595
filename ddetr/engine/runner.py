"""The Runner of ddetr: mmengine's, with the bridges that need a method of it (see compat.py for the others)."""

import logging
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.dist import broadcast, is_distributed
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, Runner
from mmengine.visualization import Visualizer
from torch import nn

from ddetr.utils.errors import CheckpointError, ConfigError, first_line
from ddetr.utils.files import remove_unfinished, write_atomically
from ddetr.utils.processes import gather
from ddetr.weights import load_weights, read_checkpoint
from ddetr.weights.pretrained import warn_of_random_backbone

from .class_check import check_classes
from .compat import init_cpu_group
from .config import check_config, explain_build_errors
from .console import keep_details_out
from .interruption import InterruptionHook
from .log_processor import ShortLines
from .loops import ResumableLoop
from .saved_config import LAST
from .schedules import resolve_shares

# of every training, also by configs that do not name them
DEFAULT_HOOKS = {
    'black_box': 'BlackBoxHook',
    'training_page': 'TrainingPageHook',
    'trim_memory': 'TrimMemoryHook',
}


@RUNNERS.register_module()
class DetRunner(Runner):
    """mmengine's Runner on machines without a GPU, with files written whole and checkpoints told apart."""

    read_already: tuple[str, dict[str, Any]] | None = (
        None  # name and content of a checkpoint, read before building
    )
    _resumed_position: Mapping[str, Any] | None = None

    def register_default_hooks(self, hooks: dict[str, Any] | None = None) -> None:
        """mmengine's defaults and `DEFAULT_HOOKS`; a name that is None registers nothing."""
        given = dict(hooks or {})
        for name, kind in DEFAULT_HOOKS.items():
            hook = given.pop(name, {})
            if isinstance(hook, Mapping):
                hook = {'type': kind, **hook}
            if hook is not None:
                given[name] = hook
        super().register_default_hooks(given)

    def setup_env(self, env_cfg: dict) -> None:
        """Join the other processes, over gloo where there is no GPU."""
        if self.distributed and not is_distributed() and not torch.cuda.is_available():
            init_cpu_group(self._launcher)
        super().setup_env(env_cfg)

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """mmengine's logger; what fills screens goes to its file only."""
        if MMLogger.check_instance_created(
            self._experiment_name
        ):  # by another run in this process and second
            self._experiment_name += f'_{id(self)}'
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                keep_details_out(handler)
                if not isinstance(handler.formatter, ShortLines):
                    handler.setFormatter(ShortLines(handler.formatter or logging.Formatter()))
        return logger

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """mmengine's, by a name of this run: by the config's, a second run in one process gets the first one's."""
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, 'name': self._experiment_name}
        return super().build_visualizer(visualizer)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """mmengine's; with `channels_last=True` in the config, convolutions work in that memory format."""
        built = super().build_model(model)
        if self.cfg.get('channels_last', False):
            built.to(memory_format=torch.channels_last)
        return built

    def _init_model_weights(self) -> None:
        """Initialise, unless a file gives every tensor: pretrained backbones then need not be downloaded."""
        if self._load_from is None or self.cfg.get('allow_partial', False):
            super()._init_model_weights()
        if self._load_from is None:
            warn_of_random_backbone(unwrap(self.model))

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap for several processes; mmengine names a GPU by its rank even where there is none."""
        if self.distributed and not torch.cuda.is_available():
            find_unused = self.cfg.get('find_unused_parameters', False)
            defaults = {'broadcast_buffers': False, 'find_unused_parameters': find_unused}
            model_wrapper_cfg = {**defaults, **(model_wrapper_cfg or {}), 'device_ids': None}
        return super().wrap_model(model_wrapper_cfg, model)

    @property
    def base_seed(self) -> int:
        """The run's seed, the same in all processes, also where `randomness.diff_rank_seed` tells them apart."""
        return self.seed - self.rank if self._randomness_cfg.get('diff_rank_seed', False) else self.seed

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """The loop that a config names, by `type` or `by_epoch`; ours, which can go on in the middle of an epoch."""
        if isinstance(loop, dict) and 'type' not in loop:
            kind = 'EpochBasedTrainLoop' if loop['by_epoch'] else 'IterBasedTrainLoop'
            loop = {'type': kind, **{key: value for key, value in loop.items() if key != 'by_epoch'}}
        return super().build_train_loop(loop)

    def scale_lr(self, optim_wrapper: Any, auto_scale_lr: dict | None = None) -> None:
        """Scale the learning rate linearly from `base_batch_size` to the whole effective batch."""
        if auto_scale_lr is not None and auto_scale_lr.get('enable', False):
            base = auto_scale_lr['base_batch_size'] / optim_wrapper._accumulative_counts
            super().scale_lr(optim_wrapper, {**auto_scale_lr, 'base_batch_size': base})

    def _build_param_scheduler(self, scheduler: Any, optim_wrapper: Any) -> list:
        """Schedules, in which floats are shares of the training's length (schedules.py)."""
        several = scheduler if isinstance(scheduler, Sequence) else [scheduler]
        if isinstance(self._train_loop, BaseLoop):
            lengths = self.max_epochs, self.max_iters
            several = [resolve_shares(one, *lengths) if isinstance(one, Mapping) else one for one in several]
        return super()._build_param_scheduler(several, optim_wrapper)

    def train(self) -> nn.Module:
        """Train, and listen for signals to end (interruption.py)."""
        self._require_one_start()
        if self.rank == 0:
            remove_unfinished(self.work_dir)
        interruption = InterruptionHook()
        self.register_hook(interruption)
        try:
            return super().train()
        finally:
            interruption.stop_listening()

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str,
        file_client_args: dict | None = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        meta: dict | None = None,
        by_epoch: bool = True,
        backend_args: dict | None = None,
    ) -> None:
        """Save a training checkpoint; it gets its name only once all of it is on disk.

        Args:
            out_dir: Folder on a local disk.
            filename: Name in it.
            file_client_args, backend_args: Of mmengine; not used.
            save_optimizer: Save the optimizer's state.
            save_param_scheduler: Save the schedules' states.
            meta: `epoch` and `iter` that are done when the training goes on from here; by default those that end with
                the current epoch if `by_epoch`, else with the current iteration. `validate=True` if a validation is to
                be repeated first.
            by_epoch: See `meta`.

        Raises:
            CheckpointError: The disk is full or cannot be written; an earlier file of this name is intact.
        """
        if self.rank != 0:
            return
        meta = {'epoch': self.epoch + by_epoch, 'iter': self.iter + (not by_epoch), **(meta or {})}
        again = meta.pop('validate', False)
        if isinstance(self.train_loop, ResumableLoop):
            position = self.train_loop.position(meta['epoch'], meta['iter'])
            meta['position'] = position._replace(validate=again or position.validate)._asdict()
        if isinstance(self._val_loop, BaseLoop):
            # of the validation's annotation file, for files of predictions; the classes are the training's
            known = getattr(self._val_loop.dataloader.dataset, 'metainfo', {}).get('category_ids')
            meta |= {} if known is None else {'category_ids': list(known)}
        save, path = super().save_checkpoint, Path(out_dir, filename)

        def write(unfinished: Path) -> None:
            save(out_dir, unfinished.name, None, save_optimizer, save_param_scheduler, meta, by_epoch)

        try:
            write_atomically(path, write)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
            raise CheckpointError(
                f'checkpoint {path} cannot be written: {first_line(error)}. Earlier checkpoints are intact: make room '
                'and go on with --resume.'
            ) from error

    def note_last_checkpoint(self, path: str | Path) -> None:
        """Let `--resume` go on from here."""
        if self.rank == 0:
            write_atomically(Path(self.work_dir, LAST), lambda unfinished: unfinished.write_text(str(path)))

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict[str, Any]:
        """Load the state of a training to go on with, or weights of any format that `ddetr.weights` knows.

        Raises:
            CheckpointError: The file cannot be read, does not fit the model, or, when resuming, holds weights only.
        """
        name, content = self.read_already or ('', {})
        self.read_already = None
        content = content if name == filename else read_checkpoint(filename)
        (self._load_training_state if self._resume else self._load_weights)(filename, content)
        self._has_loaded = True
        return content

    def _load_training_state(self, filename: str, content: dict[str, Any]) -> None:
        if training_step(content) is None:
            raise CheckpointError(
                f'checkpoint {filename} cannot be resumed: it holds weights but no optimizer, schedule and '
                f'iteration. To start a training from these weights, set load_from={filename} without --resume.'
            )
        self._resumed_position = content['meta'].get('position')
        self.call_hook('after_load_checkpoint', checkpoint=content)  # averaged weights change places here
        try:
            unwrap(self.model).load_state_dict(content['state_dict'])
        except RuntimeError as error:
            faults = ' '.join(str(error).split())[:300]
            raise CheckpointError(
                f'checkpoint {filename} cannot be resumed: it is of another model than this config builds ({faults}).'
            ) from error

    def _load_weights(self, filename: str, content: dict[str, Any]) -> None:
        training, step = isinstance(self._train_loop, BaseLoop), training_step(content)
        if training and step is not None:
            self.logger.info(
                f'load_from takes the weights of {filename} only and starts at iteration 0. To go on with the '
                f'training that it was saved from, at iteration {step}, use --resume {filename}.'
            )
        model, partial = unwrap(self.model), self.cfg.get('allow_partial', False)
        report = load_weights(model, filename, content, finetune=training, allow_partial=partial)
        for name in report.reinitialised:
            broadcast(model.state_dict()[name])  # drawn at random by each process
        if not training:
            self._compare_classes(filename, report.classes or ())
        # hooks see what was loaded, whatever the file calls it
        self.call_hook('after_load_checkpoint', checkpoint={**content, 'state_dict': model.state_dict()})

    def _compare_classes(self, filename: str, learned: Sequence[str]) -> None:
        # set by the loop, from its dataset
        tested = (self.visualizer.dataset_meta or {}).get('classes', learned)
        differing = [(a, b) for a, b in zip(learned, tested, strict=False) if a != b]
        if differing:
            self.logger.warning(
                f'{filename} was trained on classes of other names than the dataset that it is tested on: '
                f'{len(differing)} differ, first {differing[0][0]!r} there and {differing[0][1]!r} here. If they are '
                'not the same things in the same order, the results mean nothing.'
            )

    def _require_one_start(self) -> None:
        """Raise a CheckpointError if not all processes go on from the same checkpoint."""
        starts = gather(Path(self._load_from).name if self._resume and self._load_from else 'the beginning')
        if len(set(starts)) > 1:
            raise CheckpointError(
                f'work directory {self.work_dir}: the processes would go on from different checkpoints '
                f'({", ".join(starts)}). All machines need the same directory, on a shared file system.'
            )

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Go on with the training that saved `filename`, wherever its work directory lies now."""
        self._resume = True
        super().resume(filename, *args, **kwargs)
        if isinstance(self.train_loop, ResumableLoop):
            differs = self.train_loop.restore(self._resumed_position)
            if differs is not None:
                self.logger.warning(f'{filename}: {differs}.')
        for key in list(self.message_hub.runtime_info):
            # paths of the earlier run: CheckpointHook removes the best checkpoint there when it finds a better
            if key == 'last_ckpt' or key.startswith('best_ckpt'):
                name = Path(str(self.message_hub.get_info(key))).name
                self.message_hub.update_info(key, str(Path(self.work_dir, name)))
        if self.iter >= self.max_iters:
            self.logger.warning(
                f'{filename} is at iteration {self.iter} of {self.max_iters}: nothing is left to train. To train '
                'longer, raise train_cfg.max_epochs (or max_iters).'
            )

    def _maybe_compile(self, target: str) -> None:
        """Compile the model's forward. mmengine compiles the whole `train_step`: dynamo fails in the optimizer."""
        if (options := self.cfg.get('compile', False)) not in (False, None):
            self.model.compile(**({} if options is True else options))


def training_step(checkpoint: Mapping[str, Any]) -> int | None:
    """The iteration at which a training checkpoint was saved; None for files that hold weights only."""
    meta = checkpoint.get('meta')
    if isinstance(meta, Mapping) and {'optimizer', 'message_hub'} <= checkpoint.keys():
        return meta.get('iter')
    return None


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, out of the wrapper that joins several processes."""
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def build_runner(cfg: Config, loops: Sequence[str], runner_type: type[DetRunner] = DetRunner) -> DetRunner:
    """Check a config and build everything that it names, with these loops (`train`, `val`, `test`) and their datasets.

    Raises:
        InputError: Something in the config cannot be used.
    """
    check_config(cfg)
    _require_writable(Path(cfg.work_dir))
    with explain_build_errors():  # early: nothing has been trained if a loop cannot be built
        runner = runner_type.from_cfg(cfg)
        built = {f'{name}_dataloader': getattr(runner, f'{name}_loop') for name in loops}
    check_classes(unwrap(runner.model), {key: loop.dataloader.dataset for key, loop in built.items()})
    return runner


def _require_writable(folder: Path) -> None:
    """Make a work directory, and raise a ConfigError if nothing can be written there."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'0')
    except OSError as error:
        raise ConfigError(
            f'work directory {folder} cannot be written: {error.strerror}; name another with --work-dir.'
        ) from error
