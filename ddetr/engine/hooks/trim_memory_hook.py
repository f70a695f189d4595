"""Give memory that a training has freed back to the system."""

import ctypes
import sys
from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner

from ddetr.registry import HOOKS


@HOOKS.register_module()
class TrimMemoryHook(Hook):
    """Release the C library's free memory after each training epoch, each validation and the training.

    glibc keeps freed blocks between those in use, more of them with every image size that a training meets: its
    resident memory grows although nothing leaks. `malloc_trim` returns these pages in milliseconds. Other C libraries
    lack it; there the hook does nothing.
    """

    priority = 'VERY_LOW'  # after the checkpoint, whose buffers are free by then

    def __init__(self) -> None:
        library = ctypes.CDLL(None) if sys.platform == 'linux' else None
        self._trim = getattr(library, 'malloc_trim', None)  # musl has none

    def after_train_epoch(self, runner: Runner) -> None:
        """Release."""
        self._release()

    def after_val_epoch(self, runner: Runner, metrics: dict[str, Any] | None = None) -> None:
        """Release, also in trainings by iterations."""
        self._release()

    def after_train(self, runner: Runner) -> None:
        """Release, before whatever this process does next."""
        self._release()

    def _release(self) -> None:
        if self._trim is not None:
            self._trim(0)
