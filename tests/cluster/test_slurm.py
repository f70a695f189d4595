"""Trainings on a real Slurm cluster of two nodes."""

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
    """Start a training with srun, its output in a file."""
    with output.open('w') as file:
        return subprocess.Popen(**slurm.command(*words, **SIZE), stdout=file, stderr=subprocess.STDOUT)


def fails_and_is_resumed(slurm, config, work_dir, rank, uninterrupted):
    """Kill a process of a training, and train again."""
    output, pause = work_dir / 'output.txt', Pause(2, rank, work_dir / 'reached')
    paused = with_pauses(config, pause)
    job = train(slurm, output, *call(paused, work_dir))
    pause.until([job], output.read_text)
    os.kill(rank_process(slurm.nodes[rank]), signal.SIGKILL)
    seconds = seconds_to_end(slurm.network.machines, output.read_text, str(paused))
    print(f'node {rank}, rank killed: all processes are gone after {seconds:.1f} s')
    assert seconds < 30, output.read_text()
    assert job.wait(LIMIT_S) != 0
    slurm.wait_until_idle()
    assert train(slurm, output, *call(config, work_dir, '--resume')).wait(LIMIT_S) == 0, output.read_text()
    assert_equal(work_dir, uninterrupted)


class Job:
    """A batch job that can be queued again, and stands still at iteration 1, 2 and 3, each time that it has begun."""

    def __init__(self, slurm, config, work_dir, **variables):
        self.slurm, self.output = slurm, work_dir / 'output.txt'
        self.pauses = [Pause(iteration, 1, work_dir / f'reached{iteration}') for iteration in (0, 1, 2)]
        arguments = call(with_pauses(config, *self.pauses), work_dir)
        variables = {'REQUEUE': '1', 'SRUN_ARGS': f'--output {self.output}', **SIZE, **variables}
        self.number = slurm.run(*arguments, **variables).split()[-1]

    def said(self):
        return self.output.read_text() if self.output.exists() else ''

    def until(self, iteration):
        """Wait until it stands still there."""
        self.pauses[iteration].until([], self.said)

    def end(self):
        """Wait until it is through."""
        self.slurm.wait_until_idle()
        assert not self.slurm.run('squeue', '-h')


@pytest.mark.slow
def test_a_killed_rank_ends_the_job_and_the_resumed_training_is_the_uninterrupted_one(
    slurm, tiny_run, uninterrupted, tmp_path
):
    fails_and_is_resumed(slurm, tiny_run.config, tmp_path, 1, uninterrupted)


@pytest.mark.slow
def test_a_job_that_is_queued_again_trains_what_an_uninterrupted_one_does(
    slurm, tiny_run, uninterrupted, tmp_path
):
    """By Slurm's signal ahead of a time limit, then by a person."""
    job = Job(slurm, tiny_run.config, tmp_path)
    job.until(0)
    slurm.run('scancel', '--signal=USR1', '--batch', job.number)
    job.until(1)
    slurm.run('scontrol', 'requeue', job.number)
    job.until(2)
    slurm.run('scancel', '--signal=USR1', '--batch', job.number)
    job.end()
    for iteration in (1, 2, 3):
        assert f'interrupted at iteration {iteration}, saved as' in job.said()
    assert_equal(tmp_path, uninterrupted)


@pytest.mark.slow
@pytest.mark.parametrize('rank', [0, 1])
def test_a_killed_rank_of_every_node(every_failure, slurm, tiny_run, uninterrupted, tmp_path, rank):
    fails_and_is_resumed(slurm, tiny_run.config, tmp_path, rank, uninterrupted)


@pytest.mark.slow
def test_preemption_and_a_lost_node(every_failure, slurm, tiny_run, uninterrupted, tmp_path):
    job = Job(slurm, tiny_run.config, tmp_path)
    job.until(0)
    slurm.run('sbatch', '-p', 'urgent', '-N', '2', '--exclusive', '-o', '/dev/null', '--wrap', 'true')
    job.until(1)
    assert 'interrupted at iteration 1, saved as' in job.said()
    slurm.nodes[1].power_off()
    seconds = seconds_to_end(slurm.nodes, job.said, 'launch.py')
    print(f'node 1, power off: all processes are gone after {seconds:.1f} s')
    assert seconds < 30, job.said()
    state = ['squeue', '-h', '-j', job.number, '-o', '%T']
    wait_for(lambda: slurm.run(*state).strip() == 'PENDING', 'the job is not queued again', job.said)
    slurm.run('scancel', job.number)
    with slurm_cluster(tmp_path / 'repaired') as repaired:
        again = train(repaired, tmp_path / 'again.txt', *call(tiny_run.config, tmp_path, '--resume'))
        assert again.wait(LIMIT_S) == 0, (tmp_path / 'again.txt').read_text()
    assert_equal(tmp_path, uninterrupted)


@pytest.mark.slow
def test_a_time_limit(every_failure, slurm, tiny_run, uninterrupted, tmp_path):
    """Of three minutes; Slurm sends its signal up to a minute early."""
    job = Job(
        slurm, tiny_run.config, tmp_path, GRACE='60', SRUN_ARGS=f'--output {tmp_path}/output.txt --time 3'
    )
    job.until(0)
    job.until(1)
    assert 'interrupted at iteration 1, saved as' in job.said()
    slurm.run('scontrol', 'update', f'job={job.number}', 'TimeLimit=60')
    slurm.run('scancel', '--signal=USR1', '--batch', job.number)
    job.until(2)
    slurm.run('scancel', '--signal=USR1', '--batch', job.number)
    job.end()
    assert_equal(tmp_path, uninterrupted)
