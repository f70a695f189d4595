"""Write files atomically, and choose file names for images."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError

UNFINISHED = '.unfinished'  # part of the names of temporary files
PICTURE_SUFFIXES = (
    '.jpg',
    '.jpeg',
    '.png',
    '.webp',
    '.bmp',
    '.tif',
    '.tiff',
)  # formats that OpenCV can write


@contextmanager
def unfinished_file(path: str | Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` that replaces it atomically if the block raises no exception.

    If the process is killed, the previous file (or none) remains, never a partial one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # keep the suffix of `path`: some writers derive the format from it
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}{UNFINISHED}{path.suffix}')
    try:
        yield unfinished
        with open(unfinished, 'rb') as file:
            os.fsync(file.fileno())  # flush the data before renaming
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a temporary file and rename it; see `unfinished_file`."""
    with unfinished_file(path) as unfinished:
        write(unfinished)


def remove_unfinished(folder: str | Path) -> None:
    """Delete temporary files left in `folder` by killed processes. No other process may be writing there."""
    for path in Path(folder).glob(f'.*{UNFINISHED}*'):
        path.unlink(missing_ok=True)


def write_json(value: Any, path: str | Path) -> None:
    """Write `value` as JSON to `path` atomically, creating parent folders."""
    write_atomically(path, lambda unfinished: unfinished.write_text(json.dumps(value)))


def picture_name(image_name: str) -> str:
    """File name for an annotated image: the name of the input, plus `.png` unless it ends in `PICTURE_SUFFIXES`.

    The suffix is kept so that `cat.jpg` and `cat.png` do not overwrite each other's output.
    """
    return image_name if Path(image_name).suffix.lower() in PICTURE_SUFFIXES else f'{image_name}.png'


def require_other_file(out: Path, image: str | Path) -> None:
    """Raise an InputError if the output file `out` is the input image or video itself."""
    if out.exists() and os.path.exists(image) and out.samefile(image):
        raise InputError(f'{out} would overwrite the input file: choose another output folder.')
