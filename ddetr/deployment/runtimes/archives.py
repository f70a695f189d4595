"""The two kinds of .pt2 archives."""

import zipfile
from pathlib import Path

from ddetr.utils.errors import InputError


def is_aoti_package(path: str | Path) -> bool:
    """Whether a .pt2 file holds compiled code of AOTInductor rather than a program of `torch.export`.

    Raises:
        InputError: No such file, or no archive.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return any('/data/aotinductor/' in name for name in archive.namelist())
    except FileNotFoundError as error:
        raise InputError(f'{path} does not exist: check the path.') from error
    except zipfile.BadZipFile as error:
        raise InputError(f'{path} is no .pt2 archive: {error}.') from error
