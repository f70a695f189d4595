"""Communication between the processes of a run on the CPU, without waiting for a GPU."""

import functools
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar('T')


def is_distributed() -> bool:
    """Whether this process belongs to a distributed run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(value: T) -> list[T]:
    """Gather `value` from all processes, in the order of ranks; all processes call it."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_cpu_group())
    return values


def any_process(*flags: bool) -> list[bool]:
    """Whether each of `flags` is set in any process, in one message; all processes call it."""
    if not is_distributed():
        return list(flags)
    highest = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=_cpu_group())
    return [bool(flag) for flag in highest]


def _cpu_group() -> Any:
    return _gloo_beside(dist.group.WORLD)


@functools.lru_cache(maxsize=1)
def _gloo_beside(world: Any) -> Any:
    """The default process group if its backend is gloo, else an additional gloo group."""
    return world if dist.get_backend(world) == 'gloo' else dist.new_group(backend='gloo')
