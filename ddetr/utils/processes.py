"""Communication between processes over the CPU, without GPU synchronisation."""

import functools
from typing import Any, TypeVar

import torch
import torch.distributed as dist

T = TypeVar('T')


def is_distributed() -> bool:
    """Whether this process belongs to a distributed run."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def gather(value: T) -> list[T]:
    """Gather `value` from all processes, ordered by rank. Must be called by all processes."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_cpu_group())
    return values


def any_process(*flags: bool) -> list[bool]:
    """Reduce each flag with a logical OR over all processes. Must be called by all processes."""
    if not is_distributed():
        return list(flags)
    highest = torch.tensor(flags, dtype=torch.int32)
    dist.all_reduce(highest, dist.ReduceOp.MAX, group=_cpu_group())
    return [bool(flag) for flag in highest]


def _cpu_group() -> Any:
    return _gloo_beside(dist.group.WORLD)


@functools.lru_cache(maxsize=1)
def _gloo_beside(world: Any) -> Any:
    """Default process group if its backend is gloo, otherwise an additional gloo group."""
    return world if dist.get_backend(world) == 'gloo' else dist.new_group(backend='gloo')
