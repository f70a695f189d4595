"""Load the compiled libraries once, and warn once about missing ones."""

import functools
import sys
import warnings
from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent
_SUFFIX = '.dll' if sys.platform == 'win32' else '.so'


def _load(stem: str) -> str | None:
    """Load a library from this folder. Return None on success, otherwise the reason for the failure."""
    path = _FOLDER / (stem + _SUFFIX)
    if not path.exists():
        note = _FOLDER / f'{stem}.missing.txt'  # left by the build
        cause = note.read_text().strip() if note.exists() else 'The package has not been built.'
        return f'{path.name} was not built. {cause}'
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f'{path} cannot be loaded. {error.__cause__ or error}'
    return None


CPU_PROBLEM = _load('_C')
CUDA_PROBLEM = CPU_PROBLEM
if CPU_PROBLEM is None:
    CUDA_PROBLEM = _load('_C_cuda') if torch.version.cuda else 'This PyTorch is built without CUDA.'


@functools.cache
def _warn_fallback(device_type: str, problem: str) -> None:
    warnings.warn(
        f'ddetr_ops falls back to plain PyTorch on {device_type}, which is many times slower: {problem} '
        'Reinstall it with a compiler available (pip install --no-cache-dir --force-reinstall --no-deps).',
        stacklevel=4,
    )


def has_kernels(device_type: str) -> bool:
    """Whether compiled kernels exist for this device type; warns once if not."""
    if device_type == 'cpu':
        problem = CPU_PROBLEM
    elif device_type == 'cuda':
        problem = CUDA_PROBLEM
    elif device_type == 'meta':
        return CPU_PROBLEM is None  # fake kernels
    else:
        problem = f'There are no kernels for {device_type}.'
    if problem is not None:
        _warn_fallback(device_type, problem)
    return problem is None
