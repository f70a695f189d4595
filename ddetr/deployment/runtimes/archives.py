"""Distinguish the two kinds of .pt2 archives and read their metadata."""

import zipfile
from pathlib import Path

from ddetr.deployment.info import METADATA_KEY, ExportInfo, parse_info
from ddetr.utils.errors import InputError


def is_aoti_package(path: str | Path) -> bool:
    """Whether a .pt2 file contains compiled code of AOTInductor rather than a `torch.export` program.

    Raises:
        InputError: The file does not exist or is not an archive.
    """
    with _open(path) as archive:
        return any('/data/aotinductor/' in name for name in archive.namelist())


def read_info(path: str | Path) -> ExportInfo:
    """Read the metadata of a .pt2 file; InputError if there is none."""
    with _open(path) as archive:
        place = next((name for name in archive.namelist() if name.endswith(f'/extra/{METADATA_KEY}')), None)
        return parse_info(None if place is None else archive.read(place).decode(), path)


def _open(path: str | Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise InputError(f'{path} does not exist: check the path.') from error
    except zipfile.BadZipFile as error:
        raise InputError(f'{path} is not a .pt2 archive: {error}.') from error
