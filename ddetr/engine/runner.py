"""The Runner of ddetr: mmengine's, with the bridges that need a method of it (see compat.py for the others)."""

import logging
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

from ddetr.utils.errors import CheckpointError
from ddetr.utils.files import write_atomically
from ddetr.weights import load_weights, read_checkpoint
from ddetr.weights.pretrained import warn_of_random_backbone

from .class_check import check_classes
from .compat import init_cpu_group
from .config import check_config, explain_build_errors
from .console import keep_details_out
from .log_processor import ShortLines


@RUNNERS.register_module()
class DetRunner(Runner):
    """mmengine's Runner on machines without a GPU, with files written whole and checkpoints told apart."""

    read_already: tuple[str, dict[str, Any]] | None = (
        None  # name and content of a checkpoint, read before building
    )

    def setup_env(self, env_cfg: dict) -> None:
        """Join the other processes, over gloo where there is no GPU."""
        if self.distributed and not is_distributed() and not torch.cuda.is_available():
            init_cpu_group(self._launcher)
        super().setup_env(env_cfg)

    def build_logger(self, *args, **kwargs) -> MMLogger:
        """mmengine's logger; what fills screens goes to its file only."""
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

    def _init_model_weights(self) -> None:
        """Initialise, unless a file gives every tensor: pretrained backbones then need not be downloaded."""
        if self._load_from is None:
            warn_of_random_backbone(unwrap(self.model))
        if self._load_from is None or self.cfg.get('allow_partial', False):
            super()._init_model_weights()

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
            save, path = super().save_checkpoint, Path(out_dir, filename)
            write_atomically(path, lambda unfinished: save(out_dir, unfinished.name, *args, **kwargs))

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


def build_runner(cfg: Config, loops: Sequence[str]) -> DetRunner:
    """Check a config and build everything that it names, with these loops (`train`, `val`, `test`) and their datasets.

    Raises:
        InputError: Something in the config cannot be used.
    """
    check_config(cfg)
    with explain_build_errors():  # early: nothing has been trained if a loop cannot be built
        runner = DetRunner.from_cfg(cfg)
        built = {f'{name}_dataloader': getattr(runner, f'{name}_loop') for name in loops}
    check_classes(unwrap(runner.model), {key: loop.dataloader.dataset for key, loop in built.items()})
    return runner
