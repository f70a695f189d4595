"""In-memory cache of encoded images, shared by all processes of a machine, for datasets on slow file systems."""

import fcntl
import mmap
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from mmengine.dist import all_gather_object, barrier, get_rank
from mmengine.logging import MMLogger

from ddetr.utils.errors import InputError
from ddetr.utils.progress import track

READERS = 16  # threads that fill the cache ahead of time; they are I/O-bound
GIB = 2**30
USED, FULL, FIRST = (
    0,
    1,
    2,
)  # int64 header of the file: bytes in use, full flag, positions of the images


class ImageCache:
    """Cache of encoded image files, filled as they are first read.

    The memory is an anonymous file (`memfd_create`) shared by all processes of a machine: all ranks, which exchange it
    in a collective call in the constructor, and their workers, forked or spawned. It has no name and needs no
    clean-up: the kernel frees it with the last process, even if that is killed. It is accessed by system calls rather
    than mapped, because the page tables of all training processes would take memory too.

    Args:
        num_images: Number of images; they are indexed from 0.
        limit_gib: Maximum memory for images in GiB; images that no longer fit are read from their files every time.
            None for half of the memory available now.
        name: Name of the dataset, for messages.

    Raises:
        InputError: The limit is not positive, or the operating system has no `memfd_create`.
    """

    def __init__(self, num_images: int, limit_gib: float | None, name: str) -> None:
        if not hasattr(os, 'memfd_create'):
            raise InputError('cache_mode=True needs Linux: remove it from the dataset config.')
        if limit_gib is not None and limit_gib <= 0:
            raise InputError(f'cache_limit_gib={limit_gib} is not positive: correct it or remove cache_mode.')
        self.num_images, self.name = num_images, name
        size = 8 * (FIRST + num_images)
        self._start = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE  # position of the first image
        self.limit = int(limit_gib * GIB) if limit_gib is not None else _available_memory() // 2
        file = os.memfd_create('ddetr_images')
        os.ftruncate(file, self._start)  # zero-filled
        file, self._place = _share_with_machine(file)
        self._attach(file)

    def get(self, index: int, read: Callable[[], bytes]) -> bytes:
        """Return the bytes of image `index` from memory; on a miss, call `read()` and store them."""
        position = int(self._numbers[FIRST + index])
        if position:
            length = int.from_bytes(os.pread(self._file, 8, position), 'little')
            return _read_fully(self._file, length, position + 8)
        content = read()
        if not self._numbers[FULL]:
            self._keep(index, content)
        return content

    def fill(self, length: int, read: Callable[[int], object]) -> None:
        """Call `read(i)`, which calls `get`, for all `i` below `length` or until the cache is full.

        The ranks of a machine share the work; the first one shows its progress.
        """
        first, ranks = self._place
        mine = range(first, length, ranks)
        with ThreadPoolExecutor(READERS) as pool:
            done = pool.map(lambda i: self._numbers[FULL] or bool(read(i)), mine)
            for _ in done if first else track(done, f'{self.name}: images read ahead', total=len(mine)):
                pass

    def occupied(self) -> tuple[int, int]:
        """Return the number of cached images and the bytes they take."""
        return int((self._numbers[FIRST:] > 0).sum()), os.fstat(self._file).st_blocks * 512

    def _keep(self, index: int, content: bytes) -> None:
        start = self._reserve(index, len(content) + 8)
        if start:
            _write_fully(self._file, len(content).to_bytes(8, 'little') + content, start)
            with self._lock():  # a system call: other processes see the content before its position
                self._numbers[FIRST + index] = start

    def _reserve(self, index: int, size: int) -> int:
        """Reserve `size` bytes and return their position; 0 if the cache is full."""
        with self._lock():
            used = int(self._numbers[USED])
            if used + size <= self.limit:
                self._numbers[USED] = used + size
                return self._start + used
            first, self._numbers[FULL] = not self._numbers[FULL], 1
        if first:
            MMLogger.get_current_instance().warning(
                f'{self.name}: the image cache is full at {used / GIB:.2f} GiB with {self.occupied()[0]} of '
                f'{self.num_images} images; the rest are read from their files. Raise cache_limit_gib if there is '
                'more memory.'
            )
        return 0

    @contextmanager
    def _lock(self) -> Iterator[None]:
        """Lock out other threads and processes; the kernel releases the lock of a killed process."""
        with self._threads:
            fcntl.lockf(self._file, fcntl.LOCK_EX, 8)
            try:
                yield
            finally:
                fcntl.lockf(self._file, fcntl.LOCK_UN, 8)

    def _attach(self, file: int) -> None:
        self._file, self._threads = file, threading.Lock()
        self._numbers = np.frombuffer(mmap.mmap(file, self._start), np.int64, FIRST + self.num_images)
        weakref.finalize(self, os.close, file)

    def __getstate__(self) -> dict[str, Any]:
        """Pickle for spawned workers, which reopen the file through this process."""
        state = {k: v for k, v in vars(self).items() if k not in ('_file', '_numbers', '_threads')}
        return {**state, 'path': f'/proc/{os.getpid()}/fd/{self._file}'}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._attach(os.open(vars(self).pop('path'), os.O_RDWR))


def _share_with_machine(file: int) -> tuple[int, tuple[int, int]]:
    """Return the file of this machine's first rank (which may be `file`), and the local rank and number of ranks."""
    # process ids of another container are not visible here, so each container has its own cache
    machine = Path('/proc/sys/kernel/random/boot_id').read_text() + os.readlink('/proc/self/ns/pid')
    everyone = all_gather_object((machine, os.getpid(), file))
    ranks = [rank for rank, (other, *_) in enumerate(everyone) if other == machine]
    place = ranks.index(get_rank()), len(ranks)
    if place[0] > 0:
        os.close(file)
        _, pid, theirs = everyone[ranks[0]]
        file = os.open(f'/proc/{pid}/fd/{theirs}', os.O_RDWR)
    barrier()  # the first rank may close its file, or end, as soon as it continues
    return file, place


def _available_memory() -> int:
    """Return the available memory in bytes, of the machine or the container, whichever is less."""
    lines = Path('/proc/meminfo').read_text().splitlines()
    available = next(int(line.split()[1]) * 1024 for line in lines if line.startswith('MemAvailable'))
    group = Path('/sys/fs/cgroup')
    if (limit := group / 'memory.max').exists() and (text := limit.read_text().strip()) != 'max':
        available = min(available, int(text) - int((group / 'memory.current').read_text()))
    return available


def _read_fully(file: int, length: int, position: int) -> bytes:
    """`os.pread` without a length limit; a single call reads at most 2 GiB and possibly less."""
    content = os.pread(file, length, position)
    while len(content) < length:
        content += os.pread(file, length - len(content), position + len(content))
    return content


def _write_fully(file: int, content: bytes, position: int) -> None:
    done = 0
    while done < len(content):
        done += os.pwrite(file, memoryview(content)[done:], position + done)
