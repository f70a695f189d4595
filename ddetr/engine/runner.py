"""mmengine's Runner with the overrides that ddetr needs (see compat.py for other workarounds)."""

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

# active in every training run, even if the config does not list them
DEFAULT_HOOKS = {
    'black_box': 'BlackBoxHook',
    'training_page': 'TrainingPageHook',
    'trim_memory': 'TrimMemoryHook',
}


@RUNNERS.register_module()
class DetRunner(Runner):
    """mmengine's Runner with CPU support, atomic checkpoints, exact resuming and clear checkpoint errors."""

    read_already: tuple[str, dict[str, Any]] | None = (
        None  # name and content of a checkpoint that was read before building
    )
    _resumed_position: Mapping[str, Any] | None = None

    def register_default_hooks(self, hooks: dict[str, Any] | None = None) -> None:
        """Register mmengine's defaults and `DEFAULT_HOOKS`; None as a value disables a hook."""
        given = dict(hooks or {})
        for name, kind in DEFAULT_HOOKS.items():
            hook = given.pop(name, {})
            if isinstance(hook, Mapping):
                hook = {'type': kind, **hook}
            if hook is not None:
                given[name] = hook
        super().register_default_hooks(given)

    def setup_env(self, env_cfg: dict) -> None:
        """Initialise the process group, with gloo if there is no GPU."""
        if self.distributed and not is_distributed() and not torch.cuda.is_available():
            init_cpu_group(self._launcher)
        super().setup_env(env_cfg)

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """Build mmengine's logger; verbose messages go only to the log file."""
        if MMLogger.check_instance_created(
            self._experiment_name
        ):  # by another run in this process within the same second
            self._experiment_name += f'_{id(self)}'
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                keep_details_out(handler)
                if not isinstance(handler.formatter, ShortLines):
                    handler.setFormatter(ShortLines(handler.formatter or logging.Formatter()))
        return logger

    def build_visualizer(self, visualizer: Visualizer | dict | None = None) -> Visualizer:
        """Build the visualizer under the name of this run; otherwise a second run in one process reuses the first's."""
        if isinstance(visualizer, dict):
            visualizer = {**visualizer, 'name': self._experiment_name}
        return super().build_visualizer(visualizer)

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build the model; with `channels_last=True` in the config, convert it to that memory format."""
        built = super().build_model(model)
        if self.cfg.get('channels_last', False):
            built.to(memory_format=torch.channels_last)
        return built

    def _init_model_weights(self) -> None:
        """Initialise weights unless a checkpoint provides all of them, which avoids downloading the backbone."""
        if self._load_from is None or self.cfg.get('allow_partial', False):
            super()._init_model_weights()
        if self._load_from is None:
            warn_of_random_backbone(unwrap(self.model))

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap the model for distributed training; mmengine would select a GPU even if there is none."""
        if self.distributed and not torch.cuda.is_available():
            find_unused = self.cfg.get('find_unused_parameters', False)
            defaults = {'broadcast_buffers': False, 'find_unused_parameters': find_unused}
            model_wrapper_cfg = {**defaults, **(model_wrapper_cfg or {}), 'device_ids': None}
        return super().wrap_model(model_wrapper_cfg, model)

    @property
    def base_seed(self) -> int:
        """Seed of the run, the same in all processes even with `randomness.diff_rank_seed`."""
        return self.seed - self.rank if self._randomness_cfg.get('diff_rank_seed', False) else self.seed

    def build_train_loop(self, loop: BaseLoop | dict) -> BaseLoop:
        """Build the training loop given by `type` or `by_epoch`, using ddetr's resumable loops."""
        if isinstance(loop, dict) and 'type' not in loop:
            kind = 'EpochBasedTrainLoop' if loop['by_epoch'] else 'IterBasedTrainLoop'
            loop = {'type': kind, **{key: value for key, value in loop.items() if key != 'by_epoch'}}
        return super().build_train_loop(loop)

    def scale_lr(self, optim_wrapper: Any, auto_scale_lr: dict | None = None) -> None:
        """Scale the learning rate linearly from `base_batch_size` to the effective batch size."""
        if auto_scale_lr is not None and auto_scale_lr.get('enable', False):
            base = auto_scale_lr['base_batch_size'] / optim_wrapper._accumulative_counts
            super().scale_lr(optim_wrapper, {**auto_scale_lr, 'base_batch_size': base})

    def _build_param_scheduler(self, scheduler: Any, optim_wrapper: Any) -> list:
        """Build the schedules; floats are fractions of the training length (schedules.py)."""
        several = scheduler if isinstance(scheduler, Sequence) else [scheduler]
        if isinstance(self._train_loop, BaseLoop):
            lengths = self.max_epochs, self.max_iters
            several = [resolve_shares(one, *lengths) if isinstance(one, Mapping) else one for one in several]
        return super()._build_param_scheduler(several, optim_wrapper)

    def train(self) -> nn.Module:
        """Train, with handlers for termination signals (interruption.py)."""
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
        """Save a training checkpoint atomically.

        Args:
            out_dir: Folder on a local disk.
            filename: File name of the checkpoint.
            file_client_args, backend_args: mmengine's; ignored.
            save_optimizer: Whether to save the optimizer state.
            save_param_scheduler: Whether to save the scheduler states.
            meta: `epoch` and `iter`, the numbers completed when training resumes from here. Default: including the
                current epoch if `by_epoch`, otherwise including the current iteration. `validate=True` repeats the
                validation first.
            by_epoch: See `meta`.

        Raises:
            CheckpointError: The disk is full or not writable. An earlier file with this name is intact.
        """
        if self.rank != 0:
            return
        meta = {'epoch': self.epoch + by_epoch, 'iter': self.iter + (not by_epoch), **(meta or {})}
        again = meta.pop('validate', False)
        if isinstance(self.train_loop, ResumableLoop):
            position = self.train_loop.position(meta['epoch'], meta['iter'])
            meta['position'] = position._replace(validate=again or position.validate)._asdict()
        if isinstance(self._val_loop, BaseLoop):
            # category ids of the validation set, for prediction files; classes are those of the training set
            known = getattr(self._val_loop.dataloader.dataset, 'metainfo', {}).get('category_ids')
            meta |= {} if known is None else {'category_ids': list(known)}
        save, path = super().save_checkpoint, Path(out_dir, filename)

        def write(unfinished: Path) -> None:
            save(out_dir, unfinished.name, None, save_optimizer, save_param_scheduler, meta, by_epoch)

        try:
            write_atomically(path, write)
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
            raise CheckpointError(
                f'checkpoint {path} cannot be written: {first_line(error)}. Earlier checkpoints are intact: free disk '
                'space and continue with --resume.'
            ) from error

    def note_last_checkpoint(self, path: str | Path) -> None:
        """Record the checkpoint from which `--resume` continues."""
        if self.rank == 0:
            write_atomically(Path(self.work_dir, LAST), lambda unfinished: unfinished.write_text(str(path)))

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict[str, Any]:
        """Load a training state to resume from, or weights in any format supported by `ddetr.weights`.

        Raises:
            CheckpointError: The file is unreadable, does not match the model or, when resuming, has no training state.
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
                f'checkpoint {filename} cannot be resumed: it contains weights but no training state (optimizer, '
                f'schedule, iteration). To train from these weights, set load_from={filename} without --resume.'
            )
        self._resumed_position = content['meta'].get('position')
        self.call_hook('after_load_checkpoint', checkpoint=content)  # EMAHook swaps averaged weights here
        try:
            unwrap(self.model).load_state_dict(content['state_dict'])
        except RuntimeError as error:
            faults = ' '.join(str(error).split())[:300]
            raise CheckpointError(
                f'checkpoint {filename} cannot be resumed: it does not match the model of this config ({faults}).'
            ) from error

    def _load_weights(self, filename: str, content: dict[str, Any]) -> None:
        training, step = isinstance(self._train_loop, BaseLoop), training_step(content)
        if training and step is not None:
            self.logger.info(
                f'load_from loads only the weights of {filename} and starts at iteration 0. To continue its training '
                f'run from iteration {step}, use --resume {filename}.'
            )
        model, partial = unwrap(self.model), self.cfg.get('allow_partial', False)
        report = load_weights(model, filename, content, finetune=training, allow_partial=partial)
        for name in report.reinitialised:
            broadcast(model.state_dict()[name])  # each process has initialised them differently
        if not training:
            self._compare_classes(filename, report.classes or ())
        # hooks see the loaded weights under the model's names
        self.call_hook('after_load_checkpoint', checkpoint={**content, 'state_dict': model.state_dict()})

    def _compare_classes(self, filename: str, learned: Sequence[str]) -> None:
        # set by the test loop from its dataset
        tested = (self.visualizer.dataset_meta or {}).get('classes', learned)
        differing = [(a, b) for a, b in zip(learned, tested, strict=False) if a != b]
        if differing:
            self.logger.warning(
                f'{filename} was trained with other class names than the test dataset: {len(differing)} differ, the '
                f'first being {differing[0][0]!r} in the checkpoint and {differing[0][1]!r} in the dataset. Unless '
                'both mean the same classes in the same order, the results are meaningless.'
            )

    def _require_one_start(self) -> None:
        """Raise a CheckpointError unless all processes start from the same checkpoint."""
        starts = gather(Path(self._load_from).name if self._resume and self._load_from else 'the beginning')
        if len(set(starts)) > 1:
            raise CheckpointError(
                f'work directory {self.work_dir}: the processes would resume from different checkpoints '
                f'({", ".join(starts)}). Use the same directory on a shared file system for all machines.'
            )

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Resume the training run that saved `filename`, even if its work directory has moved."""
        self._resume = True
        super().resume(filename, *args, **kwargs)
        if isinstance(self.train_loop, ResumableLoop):
            differs = self.train_loop.restore(self._resumed_position)
            if differs is not None:
                self.logger.warning(f'{filename}: {differs}.')
        for key in list(self.message_hub.runtime_info):
            # update the earlier run's paths: CheckpointHook deletes the old best checkpoint by its path
            if key == 'last_ckpt' or key.startswith('best_ckpt'):
                name = Path(str(self.message_hub.get_info(key))).name
                self.message_hub.update_info(key, str(Path(self.work_dir, name)))
        if self.iter >= self.max_iters:
            self.logger.warning(
                f'{filename} is at iteration {self.iter} of {self.max_iters}: training is already complete. To train '
                'longer, increase train_cfg.max_epochs (or max_iters).'
            )

    def _maybe_compile(self, target: str) -> None:
        """Compile the model's forward only: mmengine compiles `train_step`, where dynamo fails in the optimizer."""
        if (options := self.cfg.get('compile', False)) not in (False, None):
            self.model.compile(**({} if options is True else options))


def training_step(checkpoint: Mapping[str, Any]) -> int | None:
    """Iteration at which a training checkpoint was saved; None for files that contain only weights."""
    meta = checkpoint.get('meta')
    if isinstance(meta, Mapping) and {'optimizer', 'message_hub'} <= checkpoint.keys():
        return meta.get('iter')
    return None


def unwrap(model: nn.Module) -> nn.Module:
    """Model without its wrapper for distributed training."""
    return cast(nn.Module, model.module) if is_model_wrapper(model) else model


def build_runner(cfg: Config, loops: Sequence[str], runner_type: type[DetRunner] = DetRunner) -> DetRunner:
    """Check a config and build its Runner with the given loops (`train`, `val`, `test`) and their datasets.

    Raises:
        InputError: The config is invalid.
    """
    check_config(cfg)
    _require_writable(Path(cfg.work_dir))
    with explain_build_errors():  # fail early: build all loops before training starts
        runner = runner_type.from_cfg(cfg)
        built = {f'{name}_dataloader': getattr(runner, f'{name}_loop') for name in loops}
    check_classes(unwrap(runner.model), {key: loop.dataloader.dataset for key, loop in built.items()})
    return runner


def _require_writable(folder: Path) -> None:
    """Create the work directory, and raise a ConfigError if it is not writable."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b'0')
    except OSError as error:
        raise ConfigError(
            f'work directory {folder} cannot be written: {error.strerror}. Choose another one with --work-dir.'
        ) from error
