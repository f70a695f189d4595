"""Training on a real Slurm cluster with two nodes."""

import os
import signal
import subprocess

import pytest

from tests.cluster.slurm import slurm_cluster, why_not
from tests.cluster.trainings import (
    LIMIT_S,
    OPTIONS,
    Pause,
    assert_equal,
    rank_process,
    seconds_to_end,
    wait_for,
    with_pauses,
)

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))
SIZE = {'GPUS': '2', 'GPUS_PER_NODE': '1', 'CPUS_PER_TASK': '1'}


@pytest.fixture
def slurm(tmp_path_factory):
    with slurm_cluster(tmp_path_factory.mktemp('slurm')) as cluster:
        yield cluster


def call(config, work_dir, *more):
    """MMDetection's call."""
    return ['bash', 'tools/slurm_train.sh', 'test', 'job', config, work_dir, *more, '--cfg-options', *OPTIONS]


def train(slurm, output, *words):
    """Start training with srun, with the output in a file."""
    with output.open('w') as file:
        return subprocess.Popen(**slurm.command(*words, **SIZE), stdout=file, stderr=subprocess.STDOUT)


def fails(slurm, config, work_dir, rank):
    """Kill one process of a run: all others must end too."""
    output, pause = work_dir / 'output.txt', Pause(1, rank, work_dir / 'killed')
    paused = with_pauses(config, pause)
    job = train(slurm, output, *call(paused, work_dir))
    pause.until([job], output.read_text)
    os.kill(rank_process(slurm.nodes[rank]), signal.SIGKILL)
    seconds = seconds_to_end(slurm.network.machines, output.read_text, str(paused))
    print(f'node {rank}, rank killed: all processes are gone after {seconds:.1f} s')
    assert seconds < 30, output.read_text()
    assert job.wait(LIMIT_S) != 0
    slurm.wait_until_idle()


class Job:
    """Requeueable batch job that pauses at iterations 1 and 2 after every start."""

    def __init__(self, slurm, config, work_dir, *arguments, **variables):
        self.slurm, self.output = slurm, work_dir / 'job.txt'
        self.pauses = {
            iteration: Pause(iteration, 1, work_dir / f'reached{iteration}') for iteration in (1, 2)
        }
        arguments = call(with_pauses(config, *self.pauses.values()), work_dir, *arguments)
        variables = {'REQUEUE': '1', 'SRUN_ARGS': f'--output {self.output}', **SIZE, **variables}
        self.number = slurm.run(*arguments, **variables).split()[-1]

    def said(self):
        return self.output.read_text() if self.output.exists() else ''

    def until(self, iteration):
        """Wait until the job is paused there."""
        self.pauses[iteration].until([], self.said)

    def state(self):
        """State of the job in Slurm; empty if it has finished."""
        return self.slurm.run('squeue', '-h', '-j', self.number, '-o', '%T').strip()

    def end(self):
        """Wait until the job has finished."""
        states = ['squeue', '-h', '-o', '%T']
        wait_for(lambda: not self.slurm.run(*states).strip(), 'the job is not through', self.said)


@pytest.mark.slow
def test_killed_and_requeued_training_equals_uninterrupted_training(slurm, tiny_run, uninterrupted, tmp_path):
    """A process killed, then Slurm's signal ahead of a time limit, then a person's `scontrol requeue`."""
    fails(slurm, tiny_run.config, tmp_path, 1)
    job = Job(slurm, tiny_run.config, tmp_path, '--resume')
    job.until(1)
    slurm.run('scancel', '--signal=USR1', '--batch', job.number)
    job.until(2)
    slurm.run('scontrol', 'requeue', job.number)
    job.end()
    for iteration in (2, 3):
        assert f'interrupted at iteration {iteration}, saved as' in job.said()
    assert_equal(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 1])
def test_a_killed_rank_of_every_node(every_failure, slurm, tiny_run, uninterrupted, tmp_path, rank):
    fails(slurm, tiny_run.config, tmp_path, rank)
    again = train(slurm, tmp_path / 'again.txt', *call(tiny_run.config, tmp_path, '--resume'))
    assert again.wait(LIMIT_S) == 0, (tmp_path / 'again.txt').read_text()
    assert_equal(tmp_path, uninterrupted)


@pytest.mark.slow
def test_preemption_and_a_lost_node(every_failure, slurm, tiny_run, uninterrupted, tmp_path):
    job = Job(slurm, tiny_run.config, tmp_path)
    job.until(1)
    slurm.run('sbatch', '-p', 'urgent', '-N', '2', '--exclusive', '-o', '/dev/null', '--wrap', 'true')
    job.until(2)
    assert 'interrupted at iteration 2, saved as' in job.said()
    slurm.nodes[1].power_off()
    seconds = seconds_to_end(slurm.nodes, job.said, 'launch.py')
    print(f'node 1, power off: all processes are gone after {seconds:.1f} s')
    assert seconds < 30, job.said()
    wait_for(lambda: job.state() == 'PENDING', 'the job is not queued again', job.said)
    slurm.run('scancel', job.number)
    with slurm_cluster(tmp_path / 'repaired') as repaired:
        again = train(repaired, tmp_path / 'again.txt', *call(tiny_run.config, tmp_path, '--resume'))
        assert again.wait(LIMIT_S) == 0, (tmp_path / 'again.txt').read_text()
    assert_equal(tmp_path, uninterrupted)


@pytest.mark.slow
def test_a_time_limit(every_failure, slurm, tiny_run, uninterrupted, tmp_path):
    """Of three minutes; Slurm sends its signal up to a minute early."""
    limit = f'--output {tmp_path}/job.txt --time 3'
    job = Job(slurm, tiny_run.config, tmp_path, GRACE='60', SRUN_ARGS=limit)
    job.until(1)
    job.until(2)
    assert 'interrupted at iteration 2, saved as' in job.said()
    slurm.run('scontrol', 'requeue', job.number)
    job.end()
    assert_equal(tmp_path, uninterrupted)
