"""The Runner of ddetr: mmengine's, with the bridges that need a method of it (see compat.py for the others)."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from mmengine.config import Config
from mmengine.dist import is_distributed
from mmengine.logging import MMLogger
from mmengine.model import is_model_wrapper
from mmengine.registry import RUNNERS
from mmengine.runner import BaseLoop, CheckpointLoader, Runner
from torch import nn

from ddetr.utils.config import build_error, check_config
from ddetr.utils.errors import CheckpointError
from ddetr.utils.files import write_atomically

from .checkpoint import load_weights
from .compat import init_cpu_group
from .console import keep_details_out


@RUNNERS.register_module()
class DetRunner(Runner):
    """mmengine's Runner on machines without a GPU, with files written whole and checkpoints told apart."""

    def setup_env(self, env_cfg: dict) -> None:
        """Join the other processes, over gloo where there is no GPU."""
        if self.distributed and not is_distributed() and not torch.cuda.is_available():
            init_cpu_group(self._launcher)
        super().setup_env(env_cfg)

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """mmengine's logger; what fills screens before the first iteration goes to its file only."""
        logger = super().build_logger(*args, **kwargs)
        for handler in logger.handlers:
            if not isinstance(handler, logging.FileHandler):
                keep_details_out(handler)
        return logger

    def wrap_model(self, model_wrapper_cfg: dict | None, model: nn.Module) -> nn.Module:
        """Wrap for several processes; mmengine names a GPU by its rank even where there is none."""
        if self.distributed and not torch.cuda.is_available():
            find_unused = self.cfg.get('find_unused_parameters', False)
            defaults = {'broadcast_buffers': False, 'find_unused_parameters': find_unused}
            model_wrapper_cfg = {**defaults, **(model_wrapper_cfg or {}), 'device_ids': None}
        return super().wrap_model(model_wrapper_cfg, model)

    def save_checkpoint(self, out_dir: str, filename: str, *args, **kwargs) -> None:
        """Save a training checkpoint; it gets its name only once all of it is on disk."""
        if self.rank == 0:
            save = super().save_checkpoint
            write_atomically(
                Path(out_dir, filename), lambda unfinished: save(out_dir, unfinished.name, *args, **kwargs)
            )

    def load_checkpoint(self, filename: str, *args, **kwargs) -> dict[str, Any]:
        """Load weights, of a training checkpoint or any other weight file, into the model.

        Raises:
            CheckpointError: the file cannot be read, does not fit the model, or, when resuming, holds no state
                of a training to go on with.
        """
        checkpoint = CheckpointLoader.load_checkpoint(filename, logger=self.logger)
        step = training_step(checkpoint)
        if self._resume and step is None:
            raise CheckpointError(
                f'checkpoint {filename} cannot be resumed: it holds weights but no optimizer, schedule and '
                f'iteration. To start a training from these weights, set load_from={filename} without --resume.'
            )
        if step is not None and not self._resume and isinstance(self._train_loop, BaseLoop):  # in a training
            self.logger.info(
                f'load_from takes the weights of {filename} only and starts at iteration 0. To go on with the '
                f'training that it was saved from, at iteration {step}, use --resume {filename}.'
            )
        self.call_hook('after_load_checkpoint', checkpoint=checkpoint)
        load_weights(unwrap(self.model), checkpoint.get('state_dict', checkpoint), filename)
        self._has_loaded = True
        return checkpoint

    def resume(self, filename: str, *args, **kwargs) -> None:
        """Go on with the training that saved `filename`, wherever its work directory lies now."""
        self._resume = True
        super().resume(filename, *args, **kwargs)
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
        options = self.cfg.get('compile', False)
        if options is not False and options is not None:
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


def build_runner(cfg: Config, loops: Sequence[str]) -> DetRunner:
    """Check a config and build everything that it names, data sets included.

    Args:
        loops: which of `train`, `val` and `test` to build, of those that the config has.

    Raises:
        InputError: the first thing in the config that cannot be used.
    """
    check_config(cfg)
    try:
        runner = DetRunner.from_cfg(cfg)
        for name in loops:  # now rather than when they start to run: nothing has been trained if one is wrong
            getattr(runner, f'{name}_loop')
    except (TypeError, KeyError) as error:
        sentence = build_error(error)
        if sentence is None:
            raise
        raise sentence from error
    return runner
