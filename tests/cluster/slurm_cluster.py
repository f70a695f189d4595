"""A real Slurm cluster of two nodes on this machine, with two processors and two stand-ins for GPUs each."""

import contextlib
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

NODES = ('n1', 'n2')
CONF = """\
ClusterName=test
SlurmctldHost={host}
SlurmctldPort=17000
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ReturnToService=2
GresTypes=gpu
KillWait=5
MpiDefault=none
SlurmdTimeout=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port=17001 CPUs=2 Gres=gpu:2 State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port=17002 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE
"""


def why_not() -> str | None:
    """What this machine lacks for a cluster; None where it can have one."""
    if shutil.which('slurmctld') is None or shutil.which('munged') is None:
        return 'Slurm is not installed (Debian: apt-get install slurm-wlm munge)'
    return None if os.geteuid() == 0 else 'only root can start the daemons of Slurm'


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start the daemons, wait for two idle nodes, and end the daemons afterwards.

    Yields:
        The environment in which `srun`, `sbatch` and the others find this cluster.
    """
    host = socket.gethostname().split('.')[0]
    (folder / 'state').mkdir()
    conf = folder / 'slurm.conf'
    conf.write_text(CONF.format(host=host, folder=folder))
    devices = ('/dev/null', '/dev/zero')
    gres = [f'NodeName={node} Name=gpu File={device}\n' for node in NODES for device in devices]
    (folder / 'gres.conf').write_text(''.join(gres))
    environment = {**os.environ, 'SLURM_CONF': str(conf)}
    with named_nodes(), munge(folder):
        try:
            subprocess.run(['slurmctld', '-c'], env=environment, check=True)
            for node in NODES:
                start_node(node, environment)
            wait_until_idle(environment)
            yield environment
        finally:
            for name in ('slurmctld', *(f'slurmd-{node}' for node in NODES)):
                stop(folder / f'{name}.pid')


def start_node(node: str, environment: dict[str, str]) -> None:
    subprocess.run(['slurmd', '-N', node], env=environment, check=True)


def wait_until_idle(environment: dict[str, str], seconds: int = 60) -> None:
    """Until both nodes take jobs."""
    for _ in range(2 * seconds):
        states = subprocess.run(
            ['sinfo', '-h', '-N', '-o', '%T'], env=environment, capture_output=True, text=True
        )
        if states.stdout.split() == ['idle', 'idle']:
            return
        time.sleep(0.5)
    raise TimeoutError(f'the nodes are not idle after {seconds} s: {states.stdout} {states.stderr}')


def stop(pid_file: Path) -> None:
    """End a daemon at once, as a power cut would."""
    with contextlib.suppress(FileNotFoundError, ProcessLookupError, ValueError):
        os.kill(int(pid_file.read_text()), 9)


@contextlib.contextmanager
def named_nodes() -> Iterator[None]:
    """Let the nodes' names resolve: the processes of a job meet at the first node's."""
    hosts = Path('/etc/hosts')
    before = hosts.read_text()
    hosts.write_text(f'{before.rstrip()}\n127.0.0.1 {" ".join(NODES)}\n')
    try:
        yield
    finally:
        hosts.write_text(before)


@contextlib.contextmanager
def munge(folder: Path) -> Iterator[None]:
    """Slurm's authentication service, unless one is running."""
    if subprocess.run(['munge', '-n'], capture_output=True).returncode == 0:
        yield
        return
    runtime = Path('/run/munge')
    runtime.mkdir(exist_ok=True)
    shutil.chown(runtime, 'munge')
    subprocess.run(
        ['runuser', '-u', 'munge', '--', shutil.which('munged') or 'munged', '--force'], check=True
    )
    try:
        yield
    finally:
        subprocess.run(['munged', '--stop'], capture_output=True)
