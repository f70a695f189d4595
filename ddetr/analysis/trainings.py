"""Short training runs in separate processes, to compare a resumed run with an uninterrupted one."""

import multiprocessing
import os
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from mmengine.hooks import Hook
from mmengine.logging import HistoryBuffer
from mmengine.runner import Runner

import ddetr.evaluation
import ddetr.models
import ddetr.visualization  # noqa: F401 (all three: imported once, not in every process)
from ddetr.apis import TrainOptions, train_detector
from ddetr.registry import HOOKS
from ddetr.utils.cli import run_cli
from ddetr.weights import read_checkpoint

TIMEOUT_S = 300
MEASURED = ('time', 'memory')  # in the names of scalars that differ between runs


class Training(NamedTuple):
    """A training run and its number of processes on this machine."""

    config: str
    options: Mapping[str, Any] = {}  # like `--cfg-options`
    processes: int = 1
    double: bool = False  # compute in float64, so that the order of summation does not matter

    def run(
        self, work_dir: Path, resume: str | None = None, end: 'End | None' = None, **changes: Any
    ) -> list[int]:
        """Train in new, independent processes; return their exit codes."""
        options = TrainOptions(
            str(work_dir),
            resume,
            cfg_options={**self.options, **changes},
            launcher='pytorch' if self.processes > 1 else 'none',
        )
        return in_processes(lambda: train_quietly(self.config, options, self.double), self.processes, end)


class End(NamedTuple):
    """A signal sent to the first process from outside."""

    number: int
    after_s: float


@HOOKS.register_module()
class AskToEnd(Hook):
    """Send a signal to this process in the middle of an iteration.

    Args:
        iteration: Index of that iteration, from 0.
        rank: Process that gets the signal.
        validating: Send it in the first iteration of the following validation instead.
        number: Signal number.
    """

    def __init__(
        self, iteration: int, rank: int = 0, validating: bool = False, number: int = signal.SIGTERM
    ) -> None:
        self.iteration, self.rank, self.validating, self.number = iteration, rank, validating, number

    def before_train_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """See the class."""
        self._send(runner, not self.validating and runner.iter == self.iteration)

    def before_val_iter(self, runner: Runner, *args: Any, **kwargs: Any) -> None:
        """See the class."""
        self._send(runner, self.validating and runner.iter == self.iteration + 1)

    def _send(self, runner: Runner, now: bool) -> None:
        if now and runner.rank == self.rank:
            os.kill(os.getpid(), self.number)


def train_quietly(config: str, options: TrainOptions, double: bool) -> None:
    """Run a training like the command, with its output redirected to `console.txt` in the work directory."""
    path = Path(str(options.work_dir), 'console.txt')
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout = sys.stderr = open(path, 'a', buffering=1)  # noqa: SIM115 (until the process ends)
    for stream in (1, 2):
        os.dup2(sys.stdout.fileno(), stream)
    if double:
        torch.set_default_dtype(torch.float64)
        torch.Tensor.float = torch.Tensor.double  # type: ignore[method-assign]  # losses and preprocessing convert to float32 with this method
    run_cli(lambda: train_detector(config, options))


def in_processes(function: Callable[[], None], number: int, end: End | None = None) -> list[int]:
    """Call `function` in `number` forked processes with torchrun's environment; return their exit codes."""
    with socket.socket() as free:
        free.bind(('127.0.0.1', 0))
        port = free.getsockname()[1]
    context = multiprocessing.get_context('fork')
    processes = [context.Process(target=_run, args=(function, rank, number, port)) for rank in range(number)]
    for process in processes:
        process.start()
    if end is not None:
        processes[0].join(end.after_s)
        if processes[0].is_alive():
            os.kill(processes[0].pid or 0, end.number)
    for process in processes:
        process.join(TIMEOUT_S)
        if process.is_alive():
            process.kill()
            process.join()
    return [process.exitcode or 0 for process in processes]


def _run(function: Callable[[], None], rank: int, number: int, port: int) -> None:
    os.environ |= {'RANK': str(rank), 'LOCAL_RANK': str(rank), 'WORLD_SIZE': str(number)}
    os.environ |= {'MASTER_ADDR': '127.0.0.1', 'MASTER_PORT': str(port)}
    torch.set_num_threads(1)
    function()


def differences(checkpoint: Path, other: Path) -> dict[str, float]:
    """Return the largest absolute difference between two training checkpoints, per component.

    It is infinite if a component is missing in one of them. Logged times and memory are ignored.
    """
    a, b = read_checkpoint(checkpoint), read_checkpoint(other)
    found = {
        'weights': difference(a['state_dict'], b['state_dict']),
        'average': difference(a.get('ema_state_dict'), b.get('ema_state_dict')),
        'optimizer': difference(a['optimizer'], b['optimizer']),
        'schedule': difference(a['param_schedulers'], b['param_schedulers']),
    }
    logs, best = zip(*(_logged(content['message_hub']) for content in (a, b)), strict=True)
    return {**found, 'best': difference(*best), 'logs': difference(*logs)}


def difference(a: Any, b: Any) -> float:
    """Return the largest absolute difference between two nested structures; infinity if their layout differs."""
    if isinstance(a, Mapping) and isinstance(b, Mapping) and a.keys() == b.keys():
        return max((difference(a[key], b[key]) for key in a), default=0.0)
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)) and len(a) == len(b):
        return max(map(difference, a, b), default=0.0)
    if isinstance(a, (int, float, torch.Tensor)) and type(a) is type(b):
        x, y = (torch.as_tensor(value, dtype=torch.float64) for value in (a, b))
        if x.shape == y.shape:
            same = (x == y) | (x.isnan() & y.isnan())
            apart = (x - y).abs().nan_to_num(float('inf')).masked_fill(same, 0.0)
            return float(apart.max()) if apart.numel() else 0.0
    return 0.0 if type(a) is type(b) and not isinstance(a, torch.Tensor) and a == b else float('inf')


def _logged(hub: Mapping[str, Any]) -> tuple[dict[str, list], dict[str, Any]]:
    """Return all logged scalars by name, and the record of the best checkpoint without its folder."""
    buffers: dict[str, HistoryBuffer] = hub['log_scalars']
    logs = {
        name: [part.tolist() for part in buffer.data]
        for name, buffer in buffers.items()
        if not name.endswith(MEASURED)
    }
    info = {name: value for name, value in hub['runtime_info'].items() if name.startswith('best')}
    return logs, {name: Path(value).name if isinstance(value, str) else value for name, value in info.items()}
