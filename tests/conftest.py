"""Fixtures that every test may use."""

from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / 'shared'


@pytest.fixture(autouse=True, scope='session')
def _ddetr_scope():
    """Let `Registry.build` find ddetr's components, as a Runner with `default_scope = 'ddetr'` does."""
    from mmengine.registry import init_default_scope

    init_default_scope('ddetr')


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture(scope='session')
def repo_root() -> Path:
    return ROOT


def _shared(*parts: str) -> Path:
    path = SHARED.joinpath(*parts)
    if not path.exists():
        pytest.skip(f'{path} is absent: it belongs to the development machines, not to the project')
    return path


@pytest.fixture(scope='session')
def coco_root() -> Path:
    """128 + 128 real COCO images in COCO's own layout."""
    return _shared('data', 'coco')


@pytest.fixture(scope='session')
def checkpoint_lists() -> Path:
    """JSON files `{key: shape}` of other projects' weight files."""
    return _shared('checkpoints')
