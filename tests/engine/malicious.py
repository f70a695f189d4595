"""Weight files that nobody should read with `pickle`. Each tries to create a marker file."""

import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
from mmengine.logging import HistoryBuffer


class _Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: Callable, *args: object) -> None:
        self.call = function, args

    def __reduce__(self):
        return self.call


def _payload(marker: Path) -> dict:
    import os

    return {'state_dict': {'weight': torch.zeros(3)}, 'meta': _Calls(os.system, f'touch {marker}')}


def _by_zip(path: Path, marker: Path) -> None:
    torch.save(_payload(marker), path)


def _by_old_format(path: Path, marker: Path) -> None:
    torch.save(_payload(marker), path, _use_new_zipfile_serialization=False)


def _by_plain_pickle(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps({'meta': _payload(marker)['meta']}, protocol=2))


def _by_eval(path: Path, marker: Path) -> None:
    torch.save({'meta': _Calls(eval, f'open({str(marker)!r}, "w").close()')}, path)


def _by_getattr(path: Path, marker: Path) -> None:
    """From an allowed class to the builtins of its module: what an allowed `getattr` would open."""
    outer = _Calls(getattr, HistoryBuffer, '__init__')
    torch.save({'meta': _Calls(getattr, outer, '__globals__')}, path)


def _by_name(path: Path, marker: Path) -> None:
    path.write_bytes(pickle.dumps(_payload(marker)))


def _zip_bomb(path: Path, marker: Path) -> None:
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        archive.writestr('archive/data.pkl', b'\0' * 10**7)


def _header_bomb(path: Path, marker: Path) -> None:
    path.write_bytes(struct.pack('<Q', 2**62) + b'{}')


def _truncated(path: Path, marker: Path) -> None:
    torch.save({'weight': torch.zeros(10_000)}, path)
    path.write_bytes(path.read_bytes()[:20_000])


def _truncated_old(path: Path, marker: Path) -> None:
    torch.save({'weight': torch.zeros(10_000)}, path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:20_000])


def _truncated_safetensors(path: Path, marker: Path) -> None:
    from safetensors.torch import save_file

    save_file({'weight': torch.zeros(10_000)}, path)
    path.write_bytes(path.read_bytes()[:20_000])


def _error_page(path: Path, marker: Path) -> None:
    path.write_text('<html>404 not found</html>')


def _empty(path: Path, marker: Path) -> None:
    path.touch()


def _no_dict(path: Path, marker: Path) -> None:
    torch.save([torch.zeros(3)], path)


# By name: how to make it, the file's suffix, and what the error must say of it.
FILES: dict[str, tuple[Callable[[Path, Path], None], str, str]] = {
    'os.system': (_by_zip, '.pth', 'system'),
    'os.system in the old format': (_by_old_format, '.pth', 'system'),
    'os.system in a plain pickle': (_by_plain_pickle, '.pth', 'system'),
    'eval': (_by_eval, '.pth', 'eval'),
    'getattr': (_by_getattr, '.pth', 'getattr'),
    'a pickle by the name of safetensors': (_by_name, '.safetensors', 'not a valid safetensors'),
    'zip bomb': (_zip_bomb, '.pth', 'would unpack to 10000000'),
    'header bomb': (_header_bomb, '.safetensors', 'not a valid safetensors'),
    'truncated': (_truncated, '.pth', '20000 bytes'),
    'truncated, old format': (_truncated_old, '.pth', '20000 bytes'),
    'truncated safetensors': (_truncated_safetensors, '.safetensors', '20000 bytes'),
    'error page': (_error_page, '.pth', 'cannot be read'),
    'empty': (_empty, '.pth', 'empty'),
    'no dict': (_no_dict, '.pth', 'list'),
}


def make(name: str, folder: Path, marker: Path) -> tuple[Path, str]:
    """Write the file of that name; its path and what an error about it must say."""
    write, suffix, expected = FILES[name]
    path = folder / f'weights{suffix}'
    write(path, marker)
    return path, expected
