"""Trainings on a real Slurm cluster of two nodes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.slurm import why_not
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


@pytest.fixture(scope='module')
def cluster(tmp_path_factory):
    with slurm(tmp_path_factory.mktemp('slurm')) as environment:
        path = os.pathsep.join([str(Path(sys.executable).parent), environment['PATH']])
        yield {**environment, 'PATH': path, 'OMP_NUM_THREADS': '1', 'VIRTUAL_ENV': sys.prefix}


def test_the_call_of_mmdetection_trains_on_both_nodes(cluster, tiny_run, tmp_path):
    call = ['bash', 'tools/slurm_train.sh', 'test', 'job', str(tiny_run.config), str(tmp_path / 'run')]
    options = ['--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=9']
    sizes = {'GPUS': '2', 'GPUS_PER_NODE': '1', 'CPUS_PER_TASK': '1'}
    run = subprocess.run(
        [*call, *options], cwd=ROOT, env={**cluster, **sizes}, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-3000:]
    log = next(tmp_path.glob('run/*/*.log')).read_text()
    assert 'Epoch(train) [1][2/2]' in log  # half as many iterations as one process needs
    assert (tmp_path / 'run' / 'epoch_1.pth').exists()
