"""Multi-node training: find addresses, and stop all machines when one of them fails."""

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

LAUNCHER_PID = (
    'LAUNCHER_PID'  # environment variable: process ID of the launcher, whose exit ends this process
)
RESTARTED = 'RESTARTED'  # environment variable: set if this process replaces one that died
JOIN_S = 600  # timeout for all machines to join, like torchrun's rendezvous
LOST_S = 15  # time without a reply after which a machine counts as lost
PATIENCE_S = 10  # grace period after another machine failed, for local processes to report their own errors
PORT_KEY = 'ddetr/lifeline'
MACHINE_LOST = 76  # exit code of a launcher that lost the connection to another machine
_SUCCESS, _FAILURE = b'.', b'!'  # last byte sent by a launcher that exits by itself


class Meeting(NamedTuple):
    """Rendezvous of a multi-node run, and the rank of this machine."""

    machines: int  # number of machines
    rank: int  # rank of this machine, from 0
    host: str  # address of machine 0
    port: int

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> 'Meeting':
        """Read the environment variables documented in the launch scripts."""
        number = environment.get
        return cls(
            int(number('NNODES') or 1), int(number('NODE_RANK') or 0), number('MASTER_ADDR') or '127.0.0.1',
            int(number('PORT') or 29500),
        )  # fmt: skip

    def local_address(self) -> str:
        """Address of this machine as seen by the others; its host name may resolve to 127.0.1.1."""
        return self.host if self.rank == 0 else self._own_address()

    def interface(self) -> str | None:
        """Name of the network interface that reaches machine 0; None without IPv4."""
        source = self._own_address()
        if ipaddress.ip_address(source).is_loopback:
            return None
        import fcntl  # not on Windows

        siocgifaddr = 0x8915  # linux/sockios.h
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            for _, name in socket.if_nameindex():
                try:
                    answer = fcntl.ioctl(probe, siocgifaddr, struct.pack('256s', name.encode()))
                except OSError:  # interface without an address
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
    """Make the kernel kill this process when its launcher exits for any reason (Linux).

    torchrun's workers have their own sessions and would outlive a killed launcher.
    """
    launcher = os.environ.pop(LAUNCHER_PID, None)  # not inherited by child processes
    if launcher is None or sys.platform != 'linux':
        return
    pr_set_pdeathsig = 1  # linux/prctl.h
    ctypes.CDLL(None, use_errno=True).prctl(pr_set_pdeathsig, signal.SIGKILL)
    if os.getppid() != int(launcher):  # the launcher exited before prctl
        os.kill(os.getpid(), signal.SIGKILL)


class Lifeline:
    """Connection between each machine's launcher and that of machine 0, to detect failures.

    When a launcher exits or is killed, its connection closes immediately. If a machine or its network goes down, TCP
    keep-alive detects it within `LOST_S` seconds. Without this, the other machines would block in a collective
    operation until its timeout: half an hour with gloo, ten minutes with NCCL.
    """

    def __init__(self, meeting: Meeting, end: Callable[[str, int], None]) -> None:
        self._meeting, self._end = meeting, end
        self._connections: dict[socket.socket, str] = {}
        self._lock = threading.Lock()
        self.has_lost = False
        threading.Thread(target=self._watch, daemon=True).start()

    def leave(self, failed: bool) -> None:
        """Tell the other machines that this launcher is exiting. They stop as well if its processes failed."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):  # already disconnected
                    connection.sendall(_FAILURE if failed else _SUCCESS)

    def _watch(self) -> None:
        from torch.distributed import TCPStore

        host, port = self._meeting.host, self._meeting.port
        # client of the store hosted by the launcher of machine 0
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
            if hasattr(socket, option):  # otherwise the system default of hours applies
                connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        with self._lock:
            self._connections[connection] = name
        selector.register(connection, selectors.EVENT_READ)

    def _read(self, selector: selectors.BaseSelector, connection: socket.socket) -> None:
        patience = PATIENCE_S
        try:
            said = connection.recv(1)
        except OSError:  # no reply
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
        """Notify the other machines at once, as if this one had failed in the same way."""
        if not self.has_lost:
            self.leave(failed=True)
            return
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
