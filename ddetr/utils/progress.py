"""Progress lines for long operations."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar('T')


def track(items: Iterable[T], what: str, total: int | None = None, every_s: float = 3.0) -> Iterator[T]:
    """Iterate over `items` and print a progress line to stderr every few seconds, suitable for log files.

    The line shows the remaining time if `total` or the length of `items` is known, otherwise items per second.
    """
    total = len(items) if total is None and isinstance(items, Sized) else total
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= every_s:
            rate = done / (now - start)
            rest = f'/{total}, {(total - done) / rate:.0f} s left' if total else f', {rate:.1f} a second'
            print(f'{what}: {done}{rest}', file=sys.stderr, flush=True)
            last = now
        yield item
