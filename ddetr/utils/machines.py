"""Connect the machines of a training: addresses, and a joint end when one of them fails."""

import contextlib
import ctypes
import ipaddress
import os
import selectors
import signal
import socket
import struct
import sys
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import NamedTuple

LAUNCHER_PID = 'LAUNCHER_PID'  # environment variable: the process that has started this one and ends it
RESTARTED = 'RESTARTED'  # environment variable: set if this process takes the place of one that died
JOIN_S = 600  # for all machines to start, as torchrun's rendezvous
LOST_S = 15  # without an answer, until a machine counts as lost
PATIENCE_S = (
    10  # after another machine has failed, for the processes of this one to end with their own errors
)
PORT_KEY = 'ddetr/lifeline'
MACHINE_LOST = 76  # exit code of a launcher that another one's machine has left alone
_SUCCESS, _FAILURE = b'.', b'!'  # what a launcher says last when it ends by itself


class Meeting(NamedTuple):
    """Rendezvous of the machines of a training, and the rank of this machine."""

    machines: int
    rank: int  # of this machine, from 0
    host: str  # of machine 0
    port: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> 'Meeting':
        """Create it from the environment variables that the launch scripts document."""
        number = environment.get
        return cls(
            int(number('NNODES') or 1), int(number('NODE_RANK') or 0), number('MASTER_ADDR') or '127.0.0.1',
            int(number('PORT') or 29500),
        )  # fmt: skip

    def local_address(self) -> str:
        """Address at which other machines reach this one; its host name may resolve to 127.0.1.1."""
        return self.host if self.rank == 0 else self._own_address()

    def interface(self) -> str | None:
        """Network interface towards machine 0; None without IPv4."""
        source = self._own_address()
        if ipaddress.ip_address(source).is_loopback:
            return None
        import fcntl  # not on Windows

        siocgifaddr = 0x8915  # linux/sockios.h
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                try:
                    answer = fcntl.ioctl(probe, siocgifaddr, struct.pack('256s', name.encode()))
                except OSError:  # without an address
                    continue
                if socket.inet_ntoa(answer[20:24]) == source:
                    return name
        return None

    def _own_address(self) -> str:
        family, kind, protocol, _, where = socket.getaddrinfo(self.host, self.port, type=socket.SOCK_DGRAM)[0]
        with socket.socket(family, kind, protocol) as probe:
            probe.connect(where)  # sends nothing
            return probe.getsockname()[0]


def end_with_launcher() -> None:
    """Make the kernel terminate this process when its launcher ends for any reason (Linux).

    Processes of torchrun have separate sessions and would outlive a killed launcher.
    """
    launcher = os.environ.pop(LAUNCHER_PID, None)  # not for the commands that this process starts
    if launcher is None or sys.platform != 'linux':
        return
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != int(launcher):  # it was gone before
        os.kill(os.getpid(), signal.SIGKILL)


class Lifeline:
    """Connection from the launcher of each machine to that of machine 0, to detect failures.

    When a launcher ends or is killed, its connection closes immediately. If a machine or its network is down, the
    keep-alive probes of the kernel detect it after `LOST_S` seconds. Otherwise the processes of other machines would
    wait in a collective operation until its timeout: half an hour over gloo, ten minutes over NCCL.
    """

    def __init__(self, meeting: Meeting, end: Callable[[str, int], None]) -> None:
        self._meeting, self._end = meeting, end
        self._connections: dict[socket.socket, str] = {}
        self._lock = threading.Lock()
        self.has_lost = False
        threading.Thread(target=self._watch, daemon=True).start()

    def leave(self, failed: bool) -> None:
        """Tell the other machines that this launcher ends regularly. They stop, too, if its processes have failed."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # it has left before
                    connection.sendall(_FAILURE if failed else _SUCCESS)

    def _watch(self) -> None:
        from torch.distributed import TCPStore

        host, port = self._meeting.host, self._meeting.port
        # a client of the store that the launcher of machine 0 holds
        store = TCPStore(host, port, is_master=False, timeout=timedelta(seconds=JOIN_S))
        with selectors.DefaultSelector() as selector:
            if self._meeting.rank == 0:
                server = socket.create_server(('', 0), backlog=self._meeting.machines)
                store.set(PORT_KEY, str(server.getsockname()[1]))
                selector.register(server, selectors.EVENT_READ)
            else:
                server = None
                connection = socket.create_connection((host, int(store.get(PORT_KEY))), timeout=JOIN_S)
                self._add(selector, connection, f'machine 0 ({host})')
            while selector.get_map():
                for key, _ in selector.select():
                    if key.fileobj is server:
                        connection, address = server.accept()
                        self._add(selector, connection, f'machine {address[0]}')
                    else:
                        self._read(selector, key.fileobj)  # type: ignore[arg-type]

    def _add(self, selector: selectors.BaseSelector, connection: socket.socket, name: str) -> None:
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        third = LOST_S // 3
        for option, value in (('TCP_KEEPIDLE', third), ('TCP_KEEPINTVL', third), ('TCP_KEEPCNT', 2)):
            if hasattr(socket, option):  # the system's own, of hours, where it has no such option
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        with self._lock:
            self._connections[connection] = name
        selector.register(connection, selectors.EVENT_READ)

    def _read(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        patience = PATIENCE_S
        try:
            said = connection.recv(1)
        except OSError:  # no answer
            said, patience = b'', 0
        selector.unregister(connection)
        with self._lock:
            name = self._connections.pop(connection)
        if said != _SUCCESS:
            self.has_lost = said != _FAILURE
            self._pass_on()
            time.sleep(patience)
            self._end(name, MACHINE_LOST if self.has_lost else 1)

    def _pass_on(self) -> None:
        """Notify the other machines immediately, as if this one had failed in the same way."""
        if not self.has_lost:
            self.leave(failed=True)
            return
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
