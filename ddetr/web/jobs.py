"""Queue of images for the detector, and cache of results."""

import logging
import queue
import secrets
import threading
import time
from collections import OrderedDict
from dataclasses import dataclass, field

from ddetr.utils.errors import InputError, first_line

from .detection import Demo, Detected

KEPT_BYTES = 2**30  # memory for results; the least recently used are evicted first
JOB_BYTES = 4096  # overhead of a job without its image and result


class QueueFull(Exception):  # noqa: N818 (a normal condition, not an error to fix)
    """The queue has no room for another image."""


@dataclass
class Job:
    """One uploaded image, from the queue to its result."""

    name: str
    data: bytes  # encoded image; cleared after the run
    number: int  # running number over all jobs
    id: str = field(default_factory=lambda: secrets.token_urlsafe(16))  # cannot be guessed by other users
    state: str = 'waiting'  # then 'running', then 'done' or 'failed'
    submitted: float = field(default_factory=time.perf_counter)
    waited_s: float = 0.0
    result: Detected | None = None
    error: str | None = None

    @property
    def nbytes(self) -> int:
        """Approximate memory use in bytes."""
        return JOB_BYTES + len(self.data) + (self.result.nbytes if self.result else 0)


class JobQueue:
    """First-in, first-out queue of jobs, run by one thread.

    Args:
        demo: Detector that runs the jobs.
        longest: Maximum number of waiting jobs.
        kept_bytes: Memory for finished jobs; the last one is always kept.
    """

    def __init__(self, demo: Demo, longest: int, kept_bytes: int = KEPT_BYTES) -> None:
        self._demo, self._kept_bytes = demo, kept_bytes
        self._waiting: queue.Queue[Job] = queue.Queue(longest)
        self._jobs: OrderedDict[str, Job] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()
        self._submitted = self._ended = 0
        threading.Thread(target=self._work, name='detector', daemon=True).start()

    def submit(self, name: str, data: bytes) -> Job:
        """Append an image; QueueFull if there is no room."""
        with self._lock:
            job = Job(name, data, self._submitted)
            try:
                self._waiting.put_nowait(job)
            except queue.Full:
                raise QueueFull from None
            self._submitted += 1
            self._jobs[job.id] = job
        return job

    def get(self, job_id: str) -> Job | None:
        """Return a job by its id; None if it is unknown or was evicted."""
        with self._lock:
            if job_id in self._jobs:
                self._jobs.move_to_end(job_id)
            return self._jobs.get(job_id)

    def ahead(self, job: Job) -> int:
        """Return the number of jobs that run before this one."""
        return max(0, job.number - self._ended)

    def _work(self) -> None:
        while True:
            self._run(self._waiting.get())

    def _run(self, job: Job) -> None:
        job.state, job.waited_s = 'running', time.perf_counter() - job.submitted
        try:
            job.result = self._demo.detect(job.name, job.data)
            job.state = 'done'
        except InputError as error:
            job.error, job.state = str(error), 'failed'
        except Exception as error:  # e.g. out of memory: the next image may still succeed
            logging.getLogger(__name__).exception('detection failed on %r', job.name)
            job.error, job.state = f'The detector failed on this image: {first_line(error)}', 'failed'
        job.data = b''
        with self._lock:
            self._ended += 1
            self._drop()

    def _drop(self) -> None:
        ended = [job for job in self._jobs.values() if job.state in ('done', 'failed')]
        total = sum(job.nbytes for job in ended)
        for job in ended[:-1]:
            if total <= self._kept_bytes:
                break
            total -= job.nbytes
            del self._jobs[job.id]
