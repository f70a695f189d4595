"""Memory that a training has freed returns to the system."""

import ctypes
from pathlib import Path

import pytest
import torch

from ddetr.engine import TrimMemoryHook, build_runner
from ddetr.engine.config import load_config
from tests.conftest import ROOT


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


def test_hook_is_enabled_by_default(tiny_shapes, tmp_path):
    cfg = load_config(
        ROOT / 'tests/configs/tiny_shapes.py', {'train_dataloader.dataset.data_root': str(tiny_shapes)}
    )
    cfg.merge_from_dict({'work_dir': str(tmp_path), 'launcher': 'none'})
    del cfg.default_hooks['trim_memory']

    runner = build_runner(cfg, ['train'])

    assert any(isinstance(hook, TrimMemoryHook) for hook in runner.hooks)
