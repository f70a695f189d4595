"""Writing files so that nobody ever sees a half-written one."""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

UNFINISHED = '.unfinished'  # in the names of files that are being written


@contextmanager
def unfinished_file(path: str | Path) -> Iterator[Path]:
    """A file beside `path` to be written; it is put in place in one step when the block ends without an exception.

    A run killed in the middle leaves the earlier file, or none, but never half of one.
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
    """Let `write` fill a file that then gets its name; see `unfinished_file`."""
    with unfinished_file(path) as unfinished:
        write(unfinished)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what killed processes have left half-written in `folder`; no other process may be writing there."""
    for path in Path(folder).glob(f'.*{UNFINISHED}*'):
        path.unlink(missing_ok=True)


def write_json(value: Any, path: str | Path) -> None:
    """Write `value` as JSON to `path`, whole or not at all; folders are made as needed."""
    write_atomically(path, lambda unfinished: unfinished.write_text(json.dumps(value)))
