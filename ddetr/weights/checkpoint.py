"""Load checkpoints without executing code.

Training, resuming, testing, demos and converters all use `read_checkpoint`. `.safetensors` files contain no code;
everything else is loaded with `torch.load(weights_only=True)` and the short list of harmless types below.
"""

import argparse
import json
import re
import zipfile
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core import multiarray
from safetensors import SafetensorError, safe_open

from ddetr.utils.errors import CheckpointError

from .remote import fetch

HF_FILES = ('model.safetensors', 'model.safetensors.index.json', 'pytorch_model.bin')
_HISTORY_METHODS = ('min', 'max', 'current', 'mean')


def _history_method(owner: Any, name: str) -> Callable:
    """Restricted `getattr` for checkpoints, which returns only the statistics methods of `HistoryBuffer`.

    With the real `getattr`, a checkpoint could reach any function from any allowed type, including `os.system`.
    """
    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise UnpicklingError(f'GLOBAL builtins.getattr for {name!r}')
    return getattr(HistoryBuffer, name)


# Types in mmengine's training checkpoints other than tensors and plain containers. A pair adds the name under which
# the file refers to the type: numpy 1 wrote `numpy.core`, numpy 2 writes `numpy._core`.
SAFE_TYPES: tuple[Any, ...] = (
    HistoryBuffer,
    (_history_method, 'builtins.getattr'),
    (_history_method, '__builtin__.getattr'),  # the same function, named by pickle protocol 2
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in ('f8', 'f4', 'f2', 'i8', 'i4', 'i2', 'i1', 'u1', '?')),
    *((multiarray._reconstruct, f'numpy.{core}.multiarray._reconstruct') for core in ('_core', 'core')),
    *((multiarray.scalar, f'numpy.{core}.multiarray.scalar') for core in ('_core', 'core')),
    argparse.Namespace,  # original projects store their command line
)


def read_checkpoint(path: str | Path, map_location: Any = None) -> dict[str, Any]:
    """Read a checkpoint onto the CPU. Loading never executes code.

    Args:
        path: A `.safetensors` file, a file written by `torch.save`, a folder written by Hugging Face's
            `save_pretrained`, or a URL (see remote.py).
        map_location: Ignored; accepted because mmengine passes it.

    Returns:
        Content of the file. For `.safetensors` files, a dict with `state_dict` and the string metadata as `meta`.
        `meta.config`, which mmengine's `Runner.resume` would execute as Python, is removed.

    Raises:
        CheckpointError: The file is missing, truncated, not a checkpoint, or requires code execution.
    """
    path = fetch(str(path)) if '://' in str(path) else Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f'checkpoint {path} does not exist: check the path.')
    if path.is_dir():
        return _read_folder(path)
    if path.stat().st_size == 0:
        raise CheckpointError(f'checkpoint {path} is empty (0 bytes): copy or download it again.')
    content = _read_safetensors(path) if path.suffix == '.safetensors' else _read_torch(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f'checkpoint {path} contains a {type(content).__name__} instead of a dict of tensors: no weights to load.'
        )
    if isinstance(content.get('meta'), dict):
        content['meta'].pop('config', None)
    return content


def _read_folder(path: Path) -> dict[str, Any]:
    name = next((name for name in HF_FILES if (path / name).is_file()), None)
    if name is None:
        raise CheckpointError(
            f'checkpoint {path} is a folder that contains none of {", ".join(HF_FILES)}: pass a file in it.'
        )
    if not name.endswith('.index.json'):
        return read_checkpoint(path / name)
    try:
        shards = sorted(set(json.loads((path / name).read_text())['weight_map'].values()))
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f'{path / name} is not a valid index of weight files ({error!r}).') from error
    state: dict[str, torch.Tensor] = {}
    for shard in shards:
        if not isinstance(shard, str) or Path(shard).name != shard or not shard.endswith('.safetensors'):
            raise CheckpointError(
                f'{path / name} names {shard!r}, which is not a .safetensors file in the same folder.'
            )
        state |= read_checkpoint(path / shard)['state_dict']
    return {'state_dict': state}


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework='pt') as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict: it has no __iter__)
            return {'state_dict': state, 'meta': file.metadata() or {}}
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(
            f'checkpoint {path} is not a valid safetensors file, or it is truncated '
            f'({path.stat().st_size} bytes; {error}): copy or download it again.'
        ) from error


def _read_torch(path: Path) -> Any:
    size, claimed = path.stat().st_size, 0
    with suppress(zipfile.BadZipFile, ValueError, OSError), zipfile.ZipFile(path) as archive:
        claimed = sum(
            member.file_size for member in archive.infolist()
        )  # damaged archives are reported by torch.load
    if claimed > size:
        raise CheckpointError(
            f'checkpoint {path} was rejected: its {size} bytes would unpack to {claimed}, but torch.save stores '
            'tensors uncompressed. Nothing was unpacked.'
        )
    try:
        with torch.serialization.safe_globals(list(SAFE_TYPES)):
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:  # torch.load can raise any exception on a malformed file
        # remove torch's advice to disable `weights_only` before the cause, and its links after it
        cause = (
            ' '.join(str(error).split()).split(' trusted source. ')[-1].split(' Check the documentation')[0]
        )
        cause = cause.split('WeightsUnpickler error: ')[-1]
        wanted = re.search(r'GLOBAL (\S+)', cause)
        if wanted and isinstance(error, UnpicklingError):
            raise CheckpointError(
                f'checkpoint {path} was rejected: it tries to call {wanted[1]}, which weights do not need. Nothing was '
                'executed. Ask its author for a .safetensors file.'
            ) from error
        raise CheckpointError(
            f'checkpoint {path} cannot be read: it is truncated, damaged or not a checkpoint '
            f'({size} bytes; {type(error).__name__}: {cause[:120]}). Copy or download it again.'
        ) from error
