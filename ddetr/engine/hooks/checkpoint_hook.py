"""Save checkpoints so that a failure never damages earlier ones."""

from pathlib import Path
from typing import Any

from mmengine import hooks as engine
from mmengine.runner import Runner

from ddetr.engine.interruption import FILENAME as INTERRUPTED
from ddetr.registry import HOOKS


class _RemoveLater:
    """File backend that defers the removal of files."""

    def __init__(self, backend: Any) -> None:
        self.backend, self.paths = backend, list[str]()

    def remove(self, path: str) -> None:
        self.paths.append(path)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.backend, name)


@HOOKS.register_module()
class CheckpointHook(engine.CheckpointHook):
    """mmengine's hook, except that old checkpoints are deleted after saving the new one instead of before.

    `last_checkpoint` always names an existing checkpoint.
    """

    file_backend: Any

    def _save_checkpoint_with_step(self, runner: Runner, step: int, meta: dict[str, Any]) -> None:
        outdated = None
        if self.max_keep_ckpts > 0 and step not in self.keep_ckpt_ids:
            outdated = self.keep_ckpt_ids[0] if len(self.keep_ckpt_ids) == self.max_keep_ckpts else None
            self.keep_ckpt_ids.append(step)  # a full queue drops its first element
            runner.message_hub.update_info('keep_ckpt_ids', list(self.keep_ckpt_ids))
        name = self.filename_tmpl.format(step)
        self.last_ckpt = self.file_backend.join_path(self.out_dir, name)
        runner.message_hub.update_info('last_ckpt', self.last_ckpt)
        runner.save_checkpoint(
            self.out_dir,
            name,
            save_optimizer=self.save_optimizer,
            save_param_scheduler=self.save_param_scheduler,
            meta=meta,
            by_epoch=self.by_epoch,
            **self.args,
        )
        if runner.rank == 0:
            runner.note_last_checkpoint(self.last_ckpt)
            Path(runner.work_dir, INTERRUPTED).unlink(missing_ok=True)
            if outdated is not None:
                Path(self.out_dir, self.filename_tmpl.format(outdated)).unlink(missing_ok=True)

    def _save_best_checkpoint(self, runner: Runner, metrics: dict[str, Any]) -> None:
        backend = self.file_backend
        self.file_backend = later = _RemoveLater(backend)
        try:
            super()._save_best_checkpoint(runner, metrics)
        finally:
            self.file_backend = backend
        for path in later.paths:  # previous best checkpoints; not reached if saving the new one failed
            if path != getattr(self, 'best_ckpt_path', None):
                backend.remove(path)
