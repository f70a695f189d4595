from . import compat  # noqa: F401 (from here on mmengine reads weight files through `read_checkpoint` only)
from .checkpoint import read_checkpoint, write_atomically

__all__ = ['read_checkpoint', 'write_atomically']
