"""Launch distributed processes on one machine: `python tools/launch.py SCRIPT CONFIG PROCESSES [script arguments]`.

A wrapper around torchrun, configured by environment variables: NNODES (number of machines), NODE_RANK, MASTER_ADDR and
PORT (rendezvous), MAX_RESTARTS (how often failed processes are restarted) and GRACE (seconds to save after a signal).

Differences from torchrun: the exit status is 75 if a signal stopped training and a checkpoint was saved
(tools/train.py), while torchrun returns 1 for every failure; SIGUSR1, which Slurm can send before a time limit, is
handled like SIGTERM; and if a machine is lost, the processes of all machines stop.
"""

import os
import shutil
import signal
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch.distributed.launcher.api as launcher
from torch.distributed import run as torchrun
from torch.distributed.elastic.agent.server import WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from ddetr.utils.cli import INTERRUPTED_NOTE
from ddetr.utils.errors import TrainingInterrupted
from ddetr.utils.machines import JOIN_S, LAUNCHER_PID, MACHINE_LOST, RESTARTED, Lifeline, Meeting

# time for the other processes of a machine to exit after one has died: their collective operations never complete
STOP_S = 10
SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Agent(LocalElasticAgent):
    """torchrun's agent, adapted to training that handles signals and resumes."""

    def _stop_workers(self, worker_group: WorkerGroup) -> None:
        super()._shutdown(timeout=STOP_S)

    def _shutdown(self, *args: Any, **kwargs: Any) -> None:
        for number in SIGNALS:
            # a second signal would interrupt the wait for processes that are saving
            signal.signal(number, signal.SIG_IGN)
        super()._shutdown(*args, **kwargs)

    def _restart_workers(self, worker_group: WorkerGroup) -> None:
        # torchrun's restart count differs between machines: it increases only where a process died
        os.environ[RESTARTED] = '1'
        super()._restart_workers(worker_group)

    def _monitor_workers(self, worker_group: WorkerGroup) -> Any:
        result = super()._monitor_workers(worker_group)
        if result.is_failed() and os.path.exists(os.environ[INTERRUPTED_NOTE]):
            self._remaining_restarts = 0  # a signal requested the stop: do not restart
        return result


launcher.LocalElasticAgent = Agent  # type: ignore[misc]  # torchrun has no option to set the agent


def rendezvous(meeting: Meeting, restarts: int) -> list[str]:
    """torchrun options for the rendezvous."""
    if meeting.machines == 1 and not os.environ.get('PORT'):
        # any free port, so that two runs on one machine do not collide
        return ['--standalone', '--local_addr=127.0.0.1']
    options = [f'--nnodes={meeting.machines}', f'--local_addr={meeting.local_address()}']
    if not restarts:
        where = [f'--master_addr={meeting.host}', f'--master_port={meeting.port}']
        return [*options, f'--node_rank={meeting.rank}', *where]
    # restarts need a second rendezvous, which the static backend does not support
    conf = f'is_host={int(meeting.rank == 0)},join_timeout={JOIN_S},read_timeout={JOIN_S}'
    where = ['--rdzv_backend=c10d', f'--rdzv_endpoint={meeting.host}:{meeting.port}', '--rdzv_id=training']
    return [*options, *where, f'--rdzv_conf={conf}']


def main() -> None:
    script, config, processes, *arguments = sys.argv[1:]
    meeting, restarts = Meeting.from_environment(), int(os.environ.get('MAX_RESTARTS') or 0)
    try:
        where, interface = rendezvous(meeting, restarts), meeting.interface()
    except OSError as error:
        sys.stderr.write(
            f'error: MASTER_ADDR={meeting.host}: {error.strerror}. Set it to an address of machine 0.\n'
        )
        sys.exit(2)
    if meeting.machines > 1 and interface is not None:
        os.environ.setdefault('GLOO_SOCKET_IFNAME', interface)  # gloo's default depends on the host name
    options = [*where, '--nproc_per_node', processes, '--max_restarts', str(restarts)]
    options += ['--shutdown_timeout', os.environ.get('GRACE') or '30']
    # use a new store for every start: in torchrun's, restarted processes find addresses of dead ones (pytorch#135712)
    os.environ |= {'TORCH_DISABLE_SHARE_RDZV_TCP_STORE': '1', LAUNCHER_PID: str(os.getpid())}
    signal.signal(signal.SIGUSR1, lambda *_: os.kill(os.getpid(), signal.SIGTERM))
    with tempfile.TemporaryDirectory() as folder:
        os.environ[INTERRUPTED_NOTE] = str(Path(folder, 'interrupted'))
        lifeline = join(meeting, folder) if meeting.machines > 1 else None
        status = 1
        try:
            torchrun.main([*options, script, config, '--launcher', 'pytorch', *arguments])
            status = 0
        except (SignalException, ChildFailedError):
            if os.path.exists(os.environ[INTERRUPTED_NOTE]):
                status = TrainingInterrupted.EXIT_CODE
            elif lifeline is not None and lifeline.has_lost:
                status = MACHINE_LOST
            else:
                raise
        finally:
            if lifeline is not None:
                lifeline.leave(failed=status not in (0, TrainingInterrupted.EXIT_CODE))
    sys.exit(status)


def join(meeting: Meeting, folder: str) -> Lifeline:
    """Connect this machine with the others. If one of them fails, this launcher and its processes exit."""

    def end(machine: str, status: int) -> None:
        what = 'is lost' if status == MACHINE_LOST else 'has failed'
        sys.stderr.write(
            f'error: {machine} {what}. All processes on this machine stop; continue with --resume.\n'
        )
        sys.stderr.flush()
        shutil.rmtree(folder, ignore_errors=True)
        os._exit(status)  # the main thread may wait for the other machine

    return Lifeline(meeting, end)


if __name__ == '__main__':
    main()
