"""Writing files so that nobody ever sees a half-written one."""

import json
import os
from pathlib import Path
from typing import Any


def write_json(value: Any, path: str | Path) -> None:
    """Write `value` as JSON to `path`, whole or not at all; folders are made as needed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f'{path.name}.{os.getpid()}.unfinished')
    try:
        unfinished.write_text(json.dumps(value))
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)
