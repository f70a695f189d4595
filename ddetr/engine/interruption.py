"""Stop training on a scheduler's signal, with a checkpoint to resume from."""

import os
import signal
import threading
from pathlib import Path
from typing import Any

from mmengine.hooks import EMAHook, Hook
from mmengine.runner import Runner

from ddetr.utils.errors import TrainingInterrupted
from ddetr.utils.processes import any_process

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
FILENAME = 'interrupted.pth'


class InterruptionHook(Hook):
    """On SIGTERM or SIGUSR1, finish the current iteration, save `interrupted.pth` and stop.

    A signal to any process stops all processes at the same iteration. Training then raises `TrainingInterrupted`,
    whose exit code the command-line tools return.
    """

    priority = 'LOWEST'  # after the hooks that log, schedule and save

    def __init__(self) -> None:
        self.asked = False
        self.agreed: bool | None = (
            None  # result of this iteration's vote over all processes; None before the vote
        )
        self._earlier_handlers: dict[int, Any] = {}

    def before_train(self, runner: Runner) -> None:
        """Install the signal handlers. Before training starts, signals terminate the process as usual."""
        if threading.current_thread() is threading.main_thread():  # required by Python
            self._earlier_handlers = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def stop_listening(self) -> None:
        """Restore the previous handlers."""
        while self._earlier_handlers:
            signal.signal(*self._earlier_handlers.popitem())

    def after_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Stop here if any process has received a signal."""
        agreed, self.agreed = self.agreed, None
        if agreed or (agreed is None and any_process(self.asked)[0]):
            self._end(runner, {'epoch': runner.epoch, 'iter': runner.iter + 1})

    def after_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """Stop here if this process has received a signal; the resumed training repeats the validation.

        Not synchronised with other processes, which may have fewer validation batches.
        """
        if self.asked:
            for hook in runner.hooks:
                if isinstance(hook, EMAHook):  # swap the averaged weights out of the model again
                    hook.after_val_epoch(runner)
            self._end(runner, {'epoch': runner.epoch, 'iter': runner.iter, 'validate': True})

    def _ask(self, *signal_and_frame: Any) -> None:
        self.asked = True

    def _end(self, runner: Runner, meta: dict[str, Any]) -> None:
        path = Path(runner.work_dir, FILENAME)
        runner.save_checkpoint(runner.work_dir, FILENAME, meta=meta)
        runner.note_last_checkpoint(path)
        runner.logger.info(f'interrupted at iteration {meta["iter"]}: continue from {path} with --resume')
        raise TrainingInterrupted(f'interrupted at iteration {meta["iter"]}, saved as {path}')


def shield_worker(worker_id: int) -> None:
    """Make a data loader worker ignore termination signals, except from its parent process.

    Schedulers signal all processes of a job. PyTorch's handler would terminate the worker and thereby raise an error
    in the training process in the middle of an iteration.
    """
    if hasattr(signal, 'sigwaitinfo'):
        signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
        threading.Thread(target=_end_with, args=(os.getppid(),), daemon=True).start()


def _end_with(parent: int) -> None:
    while True:
        said = signal.sigwaitinfo(SIGNALS)
        if said.si_signo == signal.SIGTERM and said.si_pid == parent:
            os._exit(0)
