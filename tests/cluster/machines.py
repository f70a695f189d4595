"""Several virtual machines on one: each with its own processes, network address, host name and shared memory.

They share the file system, as the nodes of a cluster share their home directories. A machine is a set of Linux
namespaces without a name, held by one process that ends with the tests, however these end: nothing is left behind,
and two test runs at once never meet.
"""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tests.conftest import ROOT

SUBNET = '10.199.7'
# a shell that reaps orphans, as an init process does, until its input ends
HOLD = (
    'hostname {name} && mount -t tmpfs tmpfs /dev/shm && ip link set lo up && echo ready && '
    'while read -r; do :; done'
)
UNSHARE = ['unshare', '--net', '--uts', '--ipc', '--pid', '--mount', '--mount-proc', '--fork', 'bash', '-c']


class Machine(NamedTuple):
    """One machine."""

    name: str
    address: str
    init: int  # its first process, by the id that the tests see

    def command(self, *words: Any) -> list[str]:
        """Command line that runs `words` on this machine in the repository root."""
        spaces = ['--net', '--uts', '--ipc', '--pid', '--mount', f'--wd={ROOT}']
        return ['nsenter', '-t', str(self.init), *spaces, *map(str, words)]

    def run(self, *words: Any, **options: Any) -> str:
        """Run a command on this machine; return its output, or raise if it fails."""
        return subprocess.run(
            self.command(*words), check=True, stdout=subprocess.PIPE, text=True, **options
        ).stdout

    def processes(self, *words: str) -> dict[int, list[str]]:
        """The command lines that contain all `words`, by process id, except the first process."""
        found: dict[int, list[str]] = {}
        try:
            own = os.readlink(f'/proc/{self.init}/ns/pid')
        except OSError:  # it is off
            return found
        for entry in Path('/proc').iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and os.readlink(entry / 'ns/pid') == own:
                    line = (entry / 'cmdline').read_text().split('\0')[:-1]  # a zombie's is empty
                    if line and all(any(word in part for part in line) for word in words):
                        found[int(entry.name)] = line
        found.pop(self.init, None)
        return found

    def power_off(self) -> None:
        """End all processes of this machine at once."""
        os.kill(self.init, signal.SIGKILL)


class Network(NamedTuple):
    """Machines on a common switch, which is the first machine."""

    machines: tuple[Machine, ...]

    def cable(self, machine: Machine, state: str) -> None:
        """Set a machine's link 'down' or 'up' at the switch; the machine itself keeps its address."""
        ip(self.machines[0], 'link', 'set', f'port{self.machines.index(machine)}', state)


def why_not() -> str | None:
    """Return what this machine lacks to host virtual machines; None if nothing."""
    if sys.platform != 'linux':
        return 'machines on one machine are Linux namespaces'
    for command, package in (('ip', 'iproute2'), ('unshare', 'util-linux'), ('nsenter', 'util-linux')):
        if shutil.which(command) is None:
            return f'there is no {command} command (Debian: apt-get install {package})'
    needed = 'mount -t tmpfs tmpfs /dev/shm && ip link add br0 type bridge && ip link add eth0 type veth peer name eth1'
    probe = subprocess.run([*UNSHARE, needed], capture_output=True, text=True)
    return f'no namespaces can be made here: {probe.stderr.strip()}' if probe.returncode else None


@contextlib.contextmanager
def machines(*names: str, folder: Path, known: bool) -> Iterator[Network]:
    """Start machines that can reach only each other.

    Args:
        names: Their host names.
        folder: For their host files.
        known: The names resolve on all machines, as in a cluster. Otherwise only a machine's own name does, to
            127.0.1.1, as Debian's installer sets it up.
    """
    with contextlib.ExitStack() as ends:
        found = [ends.enter_context(_machine(name, f'{SUBNET}.{i}')) for i, name in enumerate(names, 1)]
        for machine in found:
            lines = [f'{m.address} {m.name}' for m in found] if known else [f'127.0.1.1 {machine.name}']
            file = folder / f'hosts-{machine.name}'
            file.write_text('\n'.join(['127.0.0.1 localhost', *lines, '']))
            machine.run('mount', '--bind', file, '/etc/hosts')
        _connect(found)
        yield Network(tuple(found))


@contextlib.contextmanager
def _machine(name: str, address: str) -> Iterator[Machine]:
    holder = subprocess.Popen(
        [*UNSHARE, HOLD.format(name=name)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    with holder:
        if holder.stdout.readline() != 'ready\n':
            raise RuntimeError(f'machine {name} does not start: {holder.communicate()[1]}')
        init = int(Path(f'/proc/{holder.pid}/task/{holder.pid}/children').read_text())
        try:
            yield Machine(name, address, init)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.kill(init, signal.SIGKILL)


def _connect(found: list[Machine]) -> None:
    switch = found[0]
    ip(switch, 'link', 'add', 'eth0', 'type', 'bridge')
    for i, machine in enumerate(found[1:], 1):
        ends = ['eth0', 'netns', str(machine.init), 'type', 'veth', 'peer', 'name', f'port{i}']
        subprocess.run(['ip', 'link', 'add', *ends, 'netns', str(switch.init)], check=True)
        ip(switch, 'link', 'set', f'port{i}', 'master', 'eth0', 'up')
    for machine in found:
        ip(machine, 'address', 'add', f'{machine.address}/24', 'dev', 'eth0')
        ip(machine, 'link', 'set', 'eth0', 'up')


def ip(machine: Machine, *words: str) -> None:
    """Change the network of a machine."""
    machine.run('ip', *words)
