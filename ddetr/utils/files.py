"""Write files atomically."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNFINISHED = '.unfinished'  # in the names of files that are being written


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
