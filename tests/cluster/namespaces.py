"""Two machines on one: network namespaces with an address each, joined by a virtual cable."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from typing import NamedTuple

SUBNET = '10.199.7'


class Machine(NamedTuple):
    """A network namespace."""

    name: str
    address: str
    interface: str

    def command(self, *words: str) -> list[str]:
        """`words` as they are run on this machine."""
        return ['ip', 'netns', 'exec', self.name, *words]


def why_not() -> str | None:
    """What this machine lacks for network namespaces; None where it can have them."""
    if shutil.which('ip') is None:
        return 'there is no ip command (Debian: apt-get install iproute2)'
    if os.geteuid() != 0:
        return 'only root can make network namespaces'
    probe = subprocess.run(['ip', 'netns', 'add', 'ddetr-probe'], capture_output=True, text=True)
    if probe.returncode != 0:
        return f'no network namespace can be made here: {probe.stderr.strip()}'
    subprocess.run(['ip', 'netns', 'del', 'ddetr-probe'], check=True)
    return None


@contextlib.contextmanager
def two_machines() -> Iterator[tuple[Machine, Machine]]:
    """Two namespaces that reach each other, and nothing else."""
    machines = tuple(Machine(f'ddetr{i}', f'{SUBNET}.{i + 1}', f'ddetr-eth{i}') for i in range(2))
    try:
        for machine in machines:
            ip('netns', 'add', machine.name)
        ip('link', 'add', machines[0].interface, 'type', 'veth', 'peer', 'name', machines[1].interface)
        for machine in machines:
            ip('link', 'set', machine.interface, 'netns', machine.name)
            ip('-n', machine.name, 'address', 'add', f'{machine.address}/24', 'dev', machine.interface)
            for interface in ('lo', machine.interface):
                ip('-n', machine.name, 'link', 'set', interface, 'up')
        yield machines  # type: ignore[misc]
    finally:
        for machine in machines:
            subprocess.run(['ip', 'netns', 'del', machine.name], capture_output=True)


def ip(*words: str) -> None:
    subprocess.run(['ip', *words], check=True)
