"""Write files atomically, and name them."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from .errors import InputError

UNFINISHED = '.unfinished'  # in the names of files that are being written
PICTURE_SUFFIXES = ('.jpg', '.jpeg', '.png', '.webp', '.bmp', '.tif', '.tiff')  # that OpenCV writes


@contextmanager
def unfinished_file(path: str | Path) -> Iterator[Path]:
    """Temporary file beside `path` that replaces it atomically when the block ends without an exception.

    A killed process leaves the previous file or none, never a partial one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # with the suffix of `path` last: some writers choose the format by it
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}{UNFINISHED}{path.suffix}')
    try:
        yield unfinished
        with open(unfinished, 'rb') as file:
            os.fsync(file.fileno())  # on disk before the name points to it
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def write_atomically(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Call `write` on a temporary file and rename it; see `unfinished_file`."""
    with unfinished_file(path) as unfinished:
        write(unfinished)


def remove_unfinished(folder: str | Path) -> None:
    """Delete temporary files of killed processes in `folder`; no other process may be writing there."""
    for path in Path(folder).glob(f'.*{UNFINISHED}*'):
        path.unlink(missing_ok=True)


def write_json(value: Any, path: str | Path) -> None:
    """Write `value` as JSON to `path` atomically, creating parent folders."""
    write_atomically(path, lambda unfinished: unfinished.write_text(json.dumps(value)))


def picture_name(image_name: str) -> str:
    """The name of an image's picture: the image's own, with `.png` added if it is not of `PICTURE_SUFFIXES`.

    So images of different names, such as `cat.jpg` and `cat.png`, have pictures of different names.
    """
    return image_name if Path(image_name).suffix.lower() in PICTURE_SUFFIXES else f'{image_name}.png'


def require_other_file(out: Path, image: str | Path) -> None:
    """Raise an InputError if `out`, a file to be written, is the image or video that is read."""
    if out.exists() and os.path.exists(image) and out.samefile(image):
        raise InputError(f'{out} would overwrite the file that is read: name another folder to write to.')
