"""The README's multi-machine command under partial failures."""

import os
import re
import signal

import pytest

from tests.cluster.machines import machines, why_not
from tests.cluster.trainings import Pair, Pause, assert_equal, rank_process, with_pauses

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
GONE_S = 30  # in which all processes of a failed training must have ended


@pytest.fixture
def network(tmp_path):
    """Two machines whose host names do not resolve, as is common outside clusters."""
    with machines('switch', 'm0', 'm1', folder=tmp_path, known=False) as network:
        yield network


def fail(network, number, what):
    """Make a machine fail in the given way."""
    machine = network.machines[1 + number]
    if what == 'rank killed':
        os.kill(rank_process(machine), signal.SIGKILL)
    elif what == 'launcher killed':
        os.kill(launcher(machine), signal.SIGKILL)
    elif what == 'network down':
        network.cable(machine, 'down')
    elif what == 'power off':
        machine.power_off()


def launcher(machine):
    """The process that has started a machine's other ones."""
    return min(machine.processes('launch.py', 'python'))


class Running:
    """Training on two machines, paused before an iteration of one process."""

    def __init__(self, network, config, work_dir, iteration, rank, **variables):
        pause = Pause(iteration, rank, work_dir / f'{iteration}')
        self.network, self.pair = network, Pair(network, with_pauses(config, pause), work_dir, **variables)
        pause.until(self.pair.processes, self.pair.said)

    def fails(self, number, what):
        """All processes on both machines must end, and none may report success."""
        fail(self.network, number, what)
        seconds = self.pair.seconds_to_end()
        print(f'machine {number}, {what}: all processes are gone after {seconds:.1f} s')
        assert seconds < GONE_S, self.pair.said()
        assert all(self.pair.statuses()), self.pair.said()


@pytest.mark.slow
def test_repeatedly_failing_training_equals_uninterrupted_training(
    network, tiny_run, uninterrupted, tmp_path
):
    """A signal on one machine, a machine without network, and a process that is killed and replaced."""
    work_dir = tmp_path / 'run'
    asked = Running(network, tiny_run.config, work_dir, 0, 1, MAX_RESTARTS='1')
    os.kill(launcher(network.machines[2]), signal.SIGTERM)
    assert asked.pair.statuses() == [75, 75], asked.pair.said()
    Running(network, tiny_run.config, work_dir, 1, 0).fails(1, 'network down')
    network.cable(network.machines[2], 'up')
    replaced = Running(network, tiny_run.config, work_dir, 2, 0, MAX_RESTARTS='1')
    fail(network, 0, 'rank killed')
    assert replaced.pair.statuses() == [0, 0], replaced.pair.said()
    assert re.search(
        r'resumed epoch: ., iter: 2', replaced.pair.said()
    )  # the process that was killed had begun at 1
    assert_equal(work_dir, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize('number', [0, 1])
@pytest.mark.parametrize('what', ['rank killed', 'launcher killed', 'network down', 'power off'])
def test_every_failure_ends_all_processes(
    every_failure, network, tiny_run, uninterrupted, tmp_path, number, what
):
    work_dir = tmp_path / 'run'
    Running(network, tiny_run.config, work_dir, 2, number).fails(number, what)
    with machines('switch', 'm0', 'm1', folder=tmp_path, known=False) as repaired:
        again = Pair(repaired, tiny_run.config, work_dir)
        assert again.statuses() == [0, 0], again.said()
    assert_equal(work_dir, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize('number', [0, 1])
def test_every_rank_is_replaced(every_failure, network, tiny_run, uninterrupted, tmp_path, number):
    running = Running(network, tiny_run.config, tmp_path / 'run', 2, number, MAX_RESTARTS='1')
    fail(network, number, 'rank killed')
    assert running.pair.statuses() == [0, 0], running.pair.said()
    assert_equal(tmp_path / 'run', uninterrupted)
