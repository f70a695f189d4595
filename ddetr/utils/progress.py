"""Progress lines for what takes more than a moment."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar('T')


def track(items: Iterable[T], what: str, total: int | None = None, every_s: float = 3.0) -> Iterator[T]:
    """Go through `items` and print one line every few seconds, which a log file bears too, to stderr.

    The time left is told where `total`, or the length of `items`, is known; else the items per second.
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
