"""Progress lines for what takes more than a moment."""

import sys
import time
from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar, cast

T = TypeVar('T')


def track(items: Iterable[T], what: str, every_s: float = 3.0, total: int | None = None) -> Iterator[T]:
    """Go through `items` and print one line every few seconds, which a log file bears too, to stderr.

    `total` is their number, needed where they have no `len`.
    """
    total = len(cast(Sized, items)) if total is None else total
    start = last = time.monotonic()
    for done, item in enumerate(items):
        now = time.monotonic()
        if done and now - last >= every_s:
            left = (now - start) / done * (total - done)
            print(f'{what}: {done}/{total}, {left:.0f} s left', file=sys.stderr, flush=True)
            last = now
        yield item
