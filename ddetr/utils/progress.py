"""Progress lines for what takes more than a moment."""

import sys
import time
from collections.abc import Iterator, Sequence
from typing import TypeVar

T = TypeVar('T')


def track(items: Sequence[T], what: str, every_s: float = 3.0) -> Iterator[T]:
    """Go through `items` and print one line every few seconds, which a log file bears too, to stderr."""
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= every_s:
            left = (now - start) / done * (len(items) - done)
            print(f'{what}: {done}/{len(items)}, {left:.0f} s left', file=sys.stderr, flush=True)
            last = now
        yield item
