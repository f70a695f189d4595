"""Coordination of the launchers of several machines."""

import os
import socket
import subprocess
import sys
import time
from datetime import timedelta
from queue import Empty, Queue

import pytest
from torch.distributed import TCPStore

from ddetr.utils import machines
from ddetr.utils.machines import LAUNCHER_PID, MACHINE_LOST, Lifeline, Meeting


def test_rendezvous_is_read_from_the_launch_scripts_variables():
    assert Meeting.from_environment({}) == (1, 0, '127.0.0.1', 29500)
    given = {'NNODES': '2', 'NODE_RANK': '1', 'MASTER_ADDR': '10.0.0.1', 'PORT': '7'}
    assert Meeting.from_environment(given) == (2, 1, '10.0.0.1', 7)


def test_addresses_belong_to_the_network_of_machine_0():
    """Machine 0 has the name given to the others, and no interface is chosen for the loopback network."""
    assert Meeting(2, 0, 'node0', 7).local_address() == 'node0'
    other = Meeting(2, 1, '127.0.0.1', 7)
    assert other.local_address() == '127.0.0.1'
    assert other.interface() is None


@pytest.fixture
def lifelines(monkeypatch):
    """Those of two machines, and with what each of them was told to end."""
    monkeypatch.setattr(machines, 'PATIENCE_S', 0)
    store = TCPStore('127.0.0.1', 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30))
    ends = Queue(), Queue()
    lines = [
        Lifeline(Meeting(2, rank, '127.0.0.1', store.port), lambda *said, end=end: end.put(said))
        for rank, end in enumerate(ends)
    ]
    deadline = time.monotonic() + 30
    while not all(line._connections for line in lines):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return lines, ends


def close(line):
    """Simulate the kernel when the process is gone."""
    for connection in list(line._connections):
        connection.shutdown(socket.SHUT_RDWR)


def test_lost_launcher_ends_the_other(lifelines):
    lines, ends = lifelines
    close(lines[1])
    assert ends[0].get(timeout=10) == ('machine 127.0.0.1', MACHINE_LOST)
    assert lines[0].has_lost


@pytest.mark.parametrize('failed', [True, False])
def test_leaving_launcher_reports_whether_it_failed(lifelines, failed):
    lines, ends = lifelines
    lines[0].leave(failed)
    if failed:
        assert ends[1].get(timeout=10) == ('machine 0 (127.0.0.1)', 1)
    else:
        with pytest.raises(Empty):
            ends[1].get(timeout=0.5)
    assert not lines[1].has_lost


@pytest.mark.skipif(sys.platform != 'linux', reason='a process ends with its parent on Linux')
def test_a_process_ends_with_its_launcher():
    """Also if that has gone before the process could ask for it; commands that it starts itself do not."""
    child = (
        'import os, time; from ddetr.utils.machines import LAUNCHER_PID, end_with_launcher; '
        'end_with_launcher(); print(LAUNCHER_PID in os.environ, flush=True); time.sleep(60)'
    )
    parent = (
        f'import os, subprocess, sys, time; os.environ[{LAUNCHER_PID!r}] = str(os.getpid()); '
        f'child = subprocess.Popen([sys.executable, "-c", {child!r}]); time.sleep(60)'
    )
    launcher = subprocess.Popen([sys.executable, '-c', parent], stdout=subprocess.PIPE, text=True)
    with launcher:
        assert launcher.stdout.readline() == 'False\n'
        begin = time.monotonic()
        launcher.kill()
        assert launcher.stdout.read() == ''  # ends when the child has ended, too
        assert time.monotonic() - begin < 30
    gone = subprocess.run(
        [sys.executable, '-c', child], env={**os.environ, LAUNCHER_PID: '1'}, capture_output=True
    )
    assert (gone.returncode, gone.stdout) == (-9, b'')
