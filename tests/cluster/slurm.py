"""A real Slurm cluster with two nodes and a controller, on the virtual machines of machines.py."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.cluster.machines import Machine, Network, machines
from tests.cluster.machines import why_not as no_machines
from tests.cluster.trainings import environment, wait_for

CONF = """\
ClusterName=test
SlurmctldHost=login
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
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
KillWait=30
SchedulerParameters=batch_sched_delay=0,sched_interval=2,sched_min_interval=100000
MpiDefault=none
SlurmdTimeout=10
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
NodeName=n1,n2 CPUs=2 Gres=gpu:2 State=UNKNOWN
PartitionName=test Nodes=ALL Default=YES MaxTime=INFINITE State=UP PriorityTier=1 GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""


class Slurm(NamedTuple):
    """A running cluster."""

    network: Network
    environment: dict[str, str]  # in which Slurm's commands find this cluster

    @property
    def nodes(self) -> tuple[Machine, ...]:
        """Machines that run jobs."""
        return self.network.machines[1:]

    def command(self, *words: Any, **variables: str) -> dict[str, Any]:
        """A command on the login machine, as arguments for `subprocess`."""
        return {'args': self.network.machines[0].command(*words), 'env': {**self.environment, **variables}}

    def run(self, *words: Any, **variables: str) -> str:
        """Run a command on the login machine; return its output."""
        done = subprocess.run(
            **self.command(*words, **variables), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def start_node(self, node: Machine) -> None:
        """Start Slurm's daemon on a node."""
        subprocess.run(node.command('slurmd', '-N', node.name), env=self.environment, check=True)

    def wait_until_idle(self) -> None:
        """Wait until both nodes accept jobs."""
        states = lambda: self.run('sinfo', '-h', '-N', '-o', '%T').split()  # noqa: E731
        wait_for(lambda: set(states()) == {'idle'}, 'the nodes are not idle', lambda: str(states()))


def why_not() -> str | None:
    """Return what this machine lacks to run a cluster; None if nothing."""
    if shutil.which('slurmctld') is None or shutil.which('munged') is None:
        return 'Slurm is not installed (Debian: apt-get install slurm-wlm munge)'
    return 'only root can start the daemons of Slurm' if os.geteuid() != 0 else no_machines()


@contextlib.contextmanager
def slurm_cluster(folder: Path) -> Iterator[Slurm]:
    """Start a cluster with its own daemons, keys and addresses; everything is removed afterwards."""
    (folder / 'state').mkdir(parents=True)
    (folder / 'slurm.conf').write_text(CONF.format(folder=folder))
    devices = ('/dev/null', '/dev/zero')  # stand for GPUs
    (folder / 'gres.conf').write_text(
        ''.join(f'NodeName=n[1-2] Name=gpu File={device}\n' for device in devices)
    )
    key = folder / 'munge.key'
    key.write_bytes(os.urandom(1024))
    key.chmod(0o600)
    munge = [f'--{name}={folder}/munge.{name}' for name in ('socket', 'pid-file', 'log-file', 'seed-file')]
    with machines('login', 'n1', 'n2', folder=folder, known=True) as network:
        slurm = Slurm(network, environment(SLURM_CONF=str(folder / 'slurm.conf')))
        slurm.run('munged', '--force', f'--key-file={key}', *munge)
        slurm.run('slurmctld', '-c')
        for node in slurm.nodes:
            slurm.start_node(node)
        slurm.wait_until_idle()
        yield slurm
