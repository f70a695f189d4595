"""Training runs that are killed, signalled, restarted and requeued, as on a cluster."""

import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch

from ddetr.analysis.kill_check import check_kills
from ddetr.analysis.resume_check import data_options
from ddetr.analysis.trainings import differences
from ddetr.apis import TrainOptions, train_detector
from ddetr.apis.runs import LAUNCHED
from ddetr.utils import ConfigError
from ddetr.utils.machines import RESTARTED
from tests.conftest import ROOT

SAVED_OFTEN = ('default_hooks.checkpoint.by_epoch=False', 'default_hooks.checkpoint.interval=1')


class Running:
    """A running command and its output so far."""

    def __init__(self, *command, **env):
        self.process = subprocess.Popen(
            [str(part) for part in command], cwd=ROOT, env={**os.environ, 'OMP_NUM_THREADS': '1', **env},
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.said = ''

    def until(self, text: str) -> None:
        while text not in self.said:
            line = self.process.stdout.readline()
            assert line, self.said[-4000:]
            self.said += line

    def end(self) -> int:
        self.said += self.process.communicate(timeout=300)[0]
        return self.process.returncode


@pytest.fixture(scope='module')
def two_processes(tiny_run, tmp_path_factory):
    """Uninterrupted run with two processes and 2 iterations per epoch."""
    work_dir = tmp_path_factory.mktemp('two')
    command = Running('bash', 'tools/dist_train.sh', tiny_run.config, '2', '--work-dir', work_dir)
    assert command.end() == 0, command.said
    return work_dir


def test_sigterm_to_the_launcher_saves_and_ends_with_75(tiny_run, two_processes, tmp_path):
    command = ['bash', 'tools/dist_train.sh', tiny_run.config, '2', '--work-dir', tmp_path]
    first = Running(*command)
    first.until('Epoch(train) [1][1/2]')
    first.process.send_signal(signal.SIGTERM)
    assert first.end() == 75, first.said
    assert f'saved as {tmp_path}/interrupted.pth; continue with --resume' in first.said
    second = Running(*command, '--resume')
    assert second.end() == 0, second.said
    assert not any(differences(tmp_path / 'epoch_2.pth', two_processes / 'epoch_2.pth').values())
    assert not (tmp_path / 'interrupted.pth').exists()  # outdated by the checkpoints after it


def test_a_dead_process_group_is_restarted_from_its_last_checkpoint(tiny_run, two_processes, tmp_path):
    """A checkpoint of an earlier run in the same folder does not belong to the run."""
    (tmp_path / 'last_checkpoint').write_text('/elsewhere/epoch_9.pth')
    os.utime(tmp_path / 'last_checkpoint', (0, 0))
    command = Running(
        'bash', 'tools/dist_train.sh', tiny_run.config, '2', '--work-dir', tmp_path,
        '--cfg-options', *SAVED_OFTEN, MAX_RESTARTS='1',
    )  # fmt: skip
    command.until('Epoch(train) [2][1/2]')
    children = subprocess.run(
        ['ps', '--ppid', str(command.process.pid), '-o', 'pid='], capture_output=True, text=True, check=True
    )
    os.kill(int(children.stdout.split()[-1]), signal.SIGKILL)
    assert command.end() == 0, command.said
    assert re.search(r'resumed epoch: \d, iter: [1-3]', command.said)
    apart = differences(tmp_path / 'iter_4.pth', two_processes / 'epoch_2.pth')
    assert apart['weights'] == apart['optimizer'] == apart['logs'] == 0


def test_processes_stop_if_they_would_resume_from_different_checkpoints(tiny_run, tmp_path):
    """Machines whose work directories have the same name but different contents."""
    config = tmp_path / 'local.py'
    config.write_text(f'_base_ = {str(tiny_run.config)!r}\nwork_dir = "{tmp_path}/{{{{$RANK:0}}}}"\n')
    (tmp_path / '0').mkdir()
    (tmp_path / '0' / 'last_checkpoint').write_text(str(tiny_run.checkpoint))
    command = Running('bash', 'tools/dist_train.sh', config, '2', '--resume')
    assert command.end() == 1, command.said
    assert (
        'the processes would resume from different checkpoints (epoch_2.pth, the beginning)' in command.said
    )


def test_only_a_restart_resumes_automatically(tiny_run, tmp_path, monkeypatch):
    """With `load_from` of its own: the training begins with it, and its restart with the last checkpoint."""
    nothing = {'train_cfg.max_epochs': 2, 'load_from': str(tiny_run.checkpoint)}
    (tmp_path / 'last_checkpoint').write_text(str(tiny_run.checkpoint))
    for restarted, launched, begins in ((False, 0, 0), (True, time.time() + 60, 0), (True, 0, 8)):
        if restarted:
            monkeypatch.setenv(RESTARTED, '1')
        monkeypatch.setenv(LAUNCHED, str(launched))
        options = TrainOptions(str(tmp_path / 'new'), cfg_options={**nothing, 'train_cfg.max_epochs': 1})
        if begins:
            options = TrainOptions(str(tmp_path), cfg_options=nothing)
        runner = train_detector(tiny_run.config, options)
        assert runner.train_loop._next.epoch == (2 if begins else 1)
        assert runner.iter == (8 if begins else 4)


def test_random_kills_leave_a_resumable_checkpoint(tmp_path):
    found = check_kills(
        str(ROOT / 'tests/configs/tiny_shapes.py'), data_options(tmp_path), tmp_path,
        [int(signal.SIGKILL), int(signal.SIGTERM)], seed=3,
    )  # fmt: skip
    assert found
    assert not any(value for one in found for value in one.apart.values()), found


def test_full_disk_gives_one_clear_error_and_keeps_the_last_checkpoint(tiny_run, run, tmp_path):
    """Files of more than 1,024,000 bytes cannot be written; the sentence is that of the file system."""
    (tmp_path / 'epoch_2.pth').write_bytes(tiny_run.checkpoint.read_bytes())
    (tmp_path / 'last_checkpoint').write_text('epoch_2.pth')
    output = run(
        'bash', '-c', 'ulimit -f 1000; exec "$0" "$@"', sys.executable, 'tools/train.py', tiny_run.config,
        '--work-dir', tmp_path, '--resume', '--cfg-options', 'train_cfg.max_epochs=3', expect=2,
    )  # fmt: skip
    assert re.search(r'error: checkpoint \S+/epoch_3\.pth cannot be written: .*File too large', output)
    assert 'Traceback' not in output
    assert (tmp_path / 'last_checkpoint').read_text() == 'epoch_2.pth'
    assert torch.load(tmp_path / 'epoch_2.pth', weights_only=False)['meta']['iter'] == 8
    assert not list(tmp_path.glob('.*'))


def test_unwritable_work_dir_gives_one_clear_error(tiny_run, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(ConfigError, match=r'work directory \S+/file/run cannot be written: Not a directory'):
        train_detector(tiny_run.config, TrainOptions(str(tmp_path / 'file' / 'run')))


@pytest.fixture
def cluster(tmp_path):
    """Stand-ins for Slurm's commands that note their arguments; the path that finds them first."""
    for name, does in (
        ('sbatch', ''),
        ('scontrol', ''),
        ('scancel', 'kill -TERM "$(cat "${0%/*}/srun.runs")"'),
        # a step that takes the time of a training, unless it is asked to end
        (
            'srun',
            'sleep "${STEP_S:-60}" & trap "kill $!; exit ${STEP_ENDS_WITH:-75}" TERM; echo $$ > "$0.runs"; wait',
        ),
    ):
        path = tmp_path / name
        path.write_text(f'#!/usr/bin/env bash\nprintf "%s\\n" "$@" > "$0.said"\n{does}\n')
        path.chmod(0o755)
    return f'{tmp_path}:{os.environ["PATH"]}'


def test_requeueable_slurm_jobs(run, cluster, tmp_path):
    run(
        'bash', 'tools/slurm_train.sh', 'gpus', 'job', 'config.py', 'work', '--amp',
        PATH=cluster, GPUS='16', REQUEUE='1', GRACE='90',
    )  # fmt: skip
    said = (tmp_path / 'sbatch.said').read_text().split('\n')
    assert '--requeue' in said
    assert said[said.index('--signal') + 1] == 'B:USR1@90'
    assert said[said.index('--nodes') + 1] == '2'
    assert said[said.index(f'{ROOT}/tools/requeue.sh') + 1] == 'bash'
    assert ' '.join(said).rstrip().endswith(f'{ROOT}/tools/dist_train.sh config.py 8 --work-dir work --amp')


@pytest.mark.parametrize('number', [signal.SIGUSR1, signal.SIGTERM])
@pytest.mark.parametrize('code', ['75', '1'])
def test_preempted_job_is_requeued(cluster, tmp_path, number, code):
    job = Running('bash', 'tools/requeue.sh', 'task', PATH=cluster, SLURM_JOB_ID='7', STEP_ENDS_WITH=code)
    while not (tmp_path / 'srun.runs').exists() or not (tmp_path / 'srun.runs').read_text():
        assert job.process.poll() is None
    job.process.send_signal(number)
    assert job.end() == 0
    assert (tmp_path / 'scancel.said').read_text() == '--signal=TERM\n7\n'  # srun itself would kill its tasks
    assert (tmp_path / 'scontrol.said').read_text() == 'requeue\n7\n'
    assert (tmp_path / 'srun.said').read_text() == '--kill-on-bad-exit=1\ntask\n'


def test_finished_job_is_not_requeued(cluster, tmp_path):
    job = Running('bash', 'tools/requeue.sh', 'task', PATH=cluster, SLURM_JOB_ID='7', STEP_S='0')
    assert job.end() == 0
    assert not (tmp_path / 'scontrol.said').exists()
