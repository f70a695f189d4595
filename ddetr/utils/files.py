"""Writing files so that nobody ever sees a half-written one."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNFINISHED = '.unfinished'  # suffix of files that are being written


def write_atomically(path: str | Path, write: Callable[[Path], Any]) -> None:
    """Let `write` fill a file beside `path`, then put it in place in one step.

    A run killed in the middle leaves the earlier file, or none, but never half of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'.{path.name}.{os.getpid()}{UNFINISHED}')
    try:
        write(unfinished)
        with open(unfinished, 'rb') as file:
            os.fsync(file.fileno())  # on disk before the name points to it
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def remove_unfinished(folder: str | Path) -> None:
    """Remove what killed processes have left half-written in `folder`; no other process may be writing there."""
    for path in Path(folder).glob(f'.*{UNFINISHED}'):
        path.unlink(missing_ok=True)


def write_json(value: Any, path: str | Path) -> None:
    """Write `value` as JSON to `path`, whole or not at all; folders are made as needed."""
    write_atomically(path, lambda unfinished: unfinished.write_text(json.dumps(value)))
