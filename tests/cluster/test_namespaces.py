"""The README's call for several machines, on two network namespaces with an address each."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.namespaces import two_machines, why_not
from tests.conftest import ROOT

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def test_two_machines_train_together(tiny_run, tmp_path):
    with two_machines() as machines:
        processes = []
        for rank, machine in enumerate(machines):
            environment = {
                **os.environ, 'NNODES': '2', 'NODE_RANK': str(rank), 'MASTER_ADDR': machines[0].address,
                'PORT': '29511', 'GLOO_SOCKET_IFNAME': machine.interface, 'OMP_NUM_THREADS': '1',
                'VIRTUAL_ENV': sys.prefix, 'PATH': f'{Path(sys.executable).parent}{os.pathsep}{os.environ["PATH"]}',
            }  # fmt: skip
            call = ['bash', 'tools/dist_train.sh', str(tiny_run.config), '1', '--work-dir', str(tmp_path / 'run'),
                    '--cfg-options', 'train_cfg.max_epochs=1', 'train_cfg.val_interval=9']  # fmt: skip
            command = machine.command(*call)
            pipes = {'stdout': subprocess.PIPE, 'stderr': subprocess.STDOUT, 'text': True}
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, **pipes))
        outputs = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], '\n'.join(o[-2000:] for o in outputs)
    log = next(tmp_path.glob('run/*/*.log')).read_text()
    assert 'Epoch(train) [1][2/2]' in log  # half as many iterations as one process needs
