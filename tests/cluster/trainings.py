"""Training on two machines with one process each, with a failure in the middle."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from ddetr.analysis.trainings import differences
from tests.cluster.machines import Machine, Network
from tests.conftest import ROOT

LIMIT_S = 300  # for a training to start, or to end, on two busy cores
OPTIONS = (  # 2 epochs of 2 iterations, each saved; a loader's worker is one more process that may stay behind
    'train_cfg.val_interval=9', 'train_dataloader.num_workers=1', 'default_hooks.checkpoint.by_epoch=False',
    'default_hooks.checkpoint.interval=1',
)  # fmt: skip
LAST = 'iter_4.pth'


class Pause(NamedTuple):
    """Point where training pauses; see pause.py."""

    iteration: int
    rank: int
    file: Path

    def hook(self) -> str:
        """As in a config."""
        return f'dict(type="Pause", iteration={self.iteration}, rank={self.rank}, file={str(self.file)!r})'

    def until(self, processes: list[subprocess.Popen], said: Callable[[], str]) -> None:
        """Wait until training is paused there; return its processes."""
        ends = lambda: self.file.exists() or any(process.poll() is not None for process in processes)  # noqa: E731
        wait_for(ends, f'{self} is not reached', said)
        assert self.file.exists(), said()[-4000:]


def with_pauses(config: Path, *pauses: Pause) -> Path:
    """A copy of a config that stands still there, beside the pauses' files."""
    path = pauses[0].file.with_suffix('.py')
    path.parent.mkdir(exist_ok=True)
    hooks = ', '.join(pause.hook() for pause in pauses)
    imports = 'custom_imports = dict(imports=["tests.cluster.pause"])'
    path.write_text(f'_base_ = {str(config)!r}\n{imports}\ncustom_hooks = [{hooks}]\n')
    return path


def environment(**more: str) -> dict[str, str]:
    """For commands on the machines: those of this interpreter, and nothing of a Slurm job that runs the tests."""
    kept = {
        key: value for key, value in os.environ.items() if not key.startswith(('SLURM', 'SBATCH', 'SRUN'))
    }
    path = f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}'
    python_path = f'{ROOT}{os.pathsep}{os.environ.get("PYTHONPATH", "")}'
    fixed = {'VIRTUAL_ENV': sys.prefix, 'PATH': path, 'OMP_NUM_THREADS': '1', 'PYTHONPATH': python_path}
    return {**kept, **fixed, **more}


class Pair:
    """The README's command for several machines, running on two."""

    def __init__(self, network: Network, config: Path, work_dir: Path, **variables: str) -> None:
        self.machines = network.machines[1:]
        work_dir.mkdir(exist_ok=True)
        self._output = work_dir / 'output.txt'
        call = [
            'tools/dist_train.sh',
            config,
            '1',
            '--work-dir',
            work_dir,
            '--resume',
            '--cfg-options',
            *OPTIONS,
        ]
        self.processes = []
        with self._output.open('w') as file:
            for rank, machine in enumerate(self.machines):
                meet = {'NNODES': '2', 'NODE_RANK': str(rank), 'MASTER_ADDR': self.machines[0].address}
                env, command = environment(**meet, **variables), machine.command('bash', *call)
                self.processes.append(
                    subprocess.Popen(command, env=env, stdout=file, stderr=subprocess.STDOUT)
                )

    def said(self) -> str:
        """Output of both machines."""
        return self._output.read_text()

    def seconds_to_end(self) -> float:
        """Wait until no process is left on any machine; return the time taken."""
        return seconds_to_end(self.machines, self.said)

    def statuses(self) -> list[int]:
        """The exit codes of both commands."""
        return [process.wait(LIMIT_S) for process in self.processes]


def rank_process(machine: Machine) -> int:
    """The training process of a machine, not its loader's workers."""
    found = machine.processes('python', 'train.py')
    return min(pid for pid, line in found.items() if not any('launch.py' in word for word in line))


def seconds_to_end(found: tuple[Machine, ...], said: Callable[[], str], *words: str) -> float:
    """Wait until no process with `words` in its command line is left on these machines; return the time taken."""
    begin = time.monotonic()
    left = lambda: [line for machine in found for line in machine.processes(*words).values()]  # noqa: E731
    wait_for(lambda: not left(), 'processes are left', lambda: f'{left()}\n{said()}')
    return time.monotonic() - begin


def wait_for(
    condition: Callable[[], bool], what: str, said: Callable[[], str], limit_s: float = LIMIT_S
) -> None:
    """Wait until `condition()` holds.

    Raises:
        TimeoutError: It did not come about in time; with what was printed.
    """
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f'{what} after {limit_s} s: {said()[-4000:]}')
        time.sleep(0.05)


def assert_equal(work_dir: Path, other: Path) -> None:
    """Assert that two runs have the same weights, optimizer state and logs."""
    apart = differences(work_dir / LAST, other / LAST)
    assert apart['weights'] == apart['optimizer'] == apart['logs'] == 0, apart
