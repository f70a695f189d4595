"""Reference run that the runs in this folder are compared with."""

import os
import subprocess

import pytest

from tests.cluster.trainings import OPTIONS, environment
from tests.conftest import ROOT

EVERY_FAILURE = 'EVERY_FAILURE'  # environment variable: also test what takes minutes, see docs/training.md


@pytest.fixture(scope='session')
def uninterrupted(tiny_run, tmp_path_factory):
    """Work directory of an uninterrupted run with two processes on one machine."""
    work_dir = tmp_path_factory.mktemp('uninterrupted')
    call = [
        'bash',
        'tools/dist_train.sh',
        tiny_run.config,
        '2',
        '--work-dir',
        work_dir,
        '--cfg-options',
        *OPTIONS,
    ]
    subprocess.run(call, cwd=ROOT, env=environment(), check=True, timeout=300)
    return work_dir


@pytest.fixture
def every_failure():
    """Skip unless all failures are enabled."""
    if EVERY_FAILURE not in os.environ:
        pytest.skip(f'takes minutes: set {EVERY_FAILURE}=1')
