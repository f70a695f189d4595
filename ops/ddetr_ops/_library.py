"""Load the compiled libraries, once, and say once what is missing."""

import functools
import warnings
from pathlib import Path

import torch

_FOLDER = Path(__file__).resolve().parent


def _load(stem: str) -> str | None:
    """Load a library that lies beside this file; None, or why that did not work."""
    path = next((p for p in sorted(_FOLDER.glob(f'{stem}.*')) if p.suffix in ('.so', '.pyd', '.dylib')), None)
    if path is None:
        return f'{_FOLDER / stem}.abi3.so was not built'
    try:
        torch.ops.load_library(str(path))
    except OSError as error:
        return f'{path} does not load: {error.__cause__ or error}'
    return None


CPU_PROBLEM = _load('_C')
CUDA_PROBLEM = CPU_PROBLEM
if CPU_PROBLEM is None:
    CUDA_PROBLEM = _load('_C_cuda') if torch.version.cuda else 'this PyTorch is built without CUDA'


@functools.cache
def _warn_fallback(device_type: str, problem: str) -> None:
    warnings.warn(
        f'ddetr_ops runs as plain PyTorch on {device_type}, many times slower: {problem}. '
        'Reinstall it with a compiler at hand: pip install --no-build-isolation ./ops (CUDA: FORCE_CUDA=1).',
        stacklevel=4,
    )


def has_kernels(device_type: str) -> bool:
    """Whether there are kernels for tensors on this type of device; warns once where there are not."""
    if device_type == 'cpu':
        problem = CPU_PROBLEM
    elif device_type == 'cuda':
        problem = CUDA_PROBLEM
    elif device_type == 'meta':
        return CPU_PROBLEM is None  # the fake kernels
    else:
        problem = f'there are no kernels for {device_type}'
    if problem is not None:
        _warn_fallback(device_type, problem)
    return problem is None
