"""Memory that a training has freed returns to the system."""

import ctypes
from pathlib import Path

import pytest
import torch

from ddetr.engine import TrimMemoryHook


def resident_mib() -> float:
    status = Path('/proc/self/status').read_text()
    return int(status.split('VmRSS:')[1].split()[0]) / 1024


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), 'malloc_trim'), reason='needs glibc')
@pytest.mark.parametrize('event', ['after_train_epoch', 'after_val_epoch', 'after_train'])
def test_freed_blocks_between_used_ones_are_released(event):
    blocks = [torch.ones(16_000) for _ in range(4_000)]  # 64 KB each: on the heap, 244 MiB
    in_use = blocks[::100]  # what pins the heap
    del blocks
    before = resident_mib()

    getattr(TrimMemoryHook(), event)(None)

    assert before - resident_mib() > 200
    assert all(block.sum() == 16_000 for block in in_use)
