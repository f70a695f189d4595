"""Reading weight files without trusting them.

Every path by which weights enter (training, resuming, testing, the demo, the converters) ends in
`read_checkpoint`. It never runs a pickle's code: `.safetensors` files hold no code, everything else goes
through `torch.load(weights_only=True)` with the short list of harmless types below.
"""

import argparse
import re
import zipfile
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NoReturn

import numpy as np
import torch
from mmengine.logging import HistoryBuffer
from numpy._core import multiarray
from safetensors import SafetensorError, safe_open

from ddetr.utils.errors import CheckpointError

_HISTORY_METHODS = ('min', 'max', 'current', 'mean')


def _history_method(owner: Any, name: str) -> Callable:
    """What `getattr` may do for a weight file: fetch one of the statistics of a `HistoryBuffer`.

    The real `getattr` on the list would reach any function from any allowed type, `os.system` included.
    """
    if owner is not HistoryBuffer or name not in _HISTORY_METHODS:
        raise UnpicklingError(f'GLOBAL builtins.getattr for {name!r}')
    return getattr(HistoryBuffer, name)


# What mmengine's training checkpoints hold beside tensors and plain containers. A pair gives the name under
# which the file asks for a type: numpy 1 wrote `numpy.core`, numpy 2 writes `numpy._core`.
SAFE_TYPES: tuple[Any, ...] = (
    HistoryBuffer,
    (_history_method, 'builtins.getattr'),
    (_history_method, '__builtin__.getattr'),  # the same function, named by pickle protocol 2
    np.ndarray,
    np.dtype,
    *(type(np.dtype(code)) for code in ('f8', 'f4', 'f2', 'i8', 'i4', 'i2', 'i1', 'u1', '?')),
    (multiarray._reconstruct, 'numpy._core.multiarray._reconstruct'),
    (multiarray._reconstruct, 'numpy.core.multiarray._reconstruct'),
    (multiarray.scalar, 'numpy._core.multiarray.scalar'),
    (multiarray.scalar, 'numpy.core.multiarray.scalar'),
    argparse.Namespace,  # the original Deformable DETR stores its command line
)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a weight file's content onto the CPU without running any code from it.

    Args:
        path: a `.safetensors` file, or anything that `torch.save` wrote.

    Returns:
        What the file holds. Of a `.safetensors` file, `state_dict` and, as `meta`, its string metadata. Without
        `meta.config`, a text that mmengine's `Runner.resume` would run as Python.

    Raises:
        CheckpointError: the file is missing, truncated, no weight file, or asks for code to be run.
            Nothing has been executed then.
    """
    path = Path(path).expanduser()
    if not path.exists():
        raise CheckpointError(f'checkpoint {path} does not exist: check the path.')
    if not path.is_file():
        raise CheckpointError(f'checkpoint {path} is a folder: name the weight file in it.')
    if path.stat().st_size == 0:
        raise CheckpointError(f'checkpoint {path} is empty (0 bytes): copy or download it again.')
    content = _read_safetensors(path) if path.suffix == '.safetensors' else _read_torch(path)
    if not isinstance(content, dict):
        raise CheckpointError(
            f'checkpoint {path} holds a {type(content).__name__}, not a dict of tensors: no weights to load.'
        )
    if isinstance(content.get('meta'), dict):
        content['meta'].pop('config', None)
    return content


def _read_safetensors(path: Path) -> dict[str, Any]:
    try:
        with safe_open(path, framework='pt') as file:
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (no dict: it has no __iter__)
            return {'state_dict': state, 'meta': file.metadata() or {}}
    except (SafetensorError, OSError, MemoryError) as error:
        raise CheckpointError(
            f'checkpoint {path} is no valid safetensors file, or it is truncated '
            f'({path.stat().st_size} bytes; {error}): copy or download it again.'
        ) from error


def _read_torch(path: Path) -> Any:
    _refuse_inflating_zip(path)
    try:
        with torch.serialization.safe_globals(list(SAFE_TYPES)):
            return torch.load(path, map_location='cpu', weights_only=True)
    except Exception as error:
        # Anything may come out of reading bytes that somebody else arranged; all of it means that the file is
        # of no use, and the cause stays attached.
        _refuse(path, error)


def _refuse(path: Path, error: Exception) -> NoReturn:
    # torch's advice to switch `weights_only` off, before, and its links, after the cause help nobody here
    cause = ' '.join(str(error).split()).split(' trusted source. ')[-1].split(' Check the documentation')[0]
    cause = cause.split('WeightsUnpickler error: ')[-1]
    wanted = re.search(r'GLOBAL (\S+)', cause)
    if wanted and isinstance(error, UnpicklingError):
        raise CheckpointError(
            f'checkpoint {path} is refused: it asks for {wanted[1]} to be called, which weights do not need; '
            'nothing was executed. Ask its author for a .safetensors file.'
        ) from error
    raise CheckpointError(
        f'checkpoint {path} cannot be read: it is truncated, damaged or no weight file '
        f'({path.stat().st_size} bytes; {type(error).__name__}: {cause[:120]}); copy or download it again.'
    ) from error


def _refuse_inflating_zip(path: Path) -> None:
    """Refuse an archive whose members claim more than the file holds: torch stores them uncompressed."""
    if not zipfile.is_zipfile(path):
        return
    try:
        with zipfile.ZipFile(path) as archive:
            claimed = sum(member.file_size for member in archive.infolist())
    except (zipfile.BadZipFile, ValueError, OSError):
        return  # torch.load says what is wrong with it
    size = path.stat().st_size
    if claimed > size:
        raise CheckpointError(
            f'checkpoint {path} is refused: its {size} bytes would unpack to {claimed}, while torch.save '
            'stores tensors uncompressed; nothing was unpacked.'
        )
