"""Images of any size in batches of equal size, so that no image is padded for its neighbours."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')
Source = TypeVar('Source')

WINDOW = 8  # batches that may wait for images of their size
LOADERS = 2  # threads that read images ahead


def run_in_batches(
    items: Iterable[Item],
    size_of: Callable[[Item], Hashable],
    run: Callable[[list[Item]], list[Result]],
    batch_size: int,
) -> Iterator[Result]:
    """Run `run` on batches of items of the same size, and give the results in the items' order.

    At most `WINDOW * batch_size` items wait; where that is reached, the oldest runs in a smaller batch.

    Args:
        items: May be endless.
        size_of: What the items of a batch have in common. None: an item that runs alone, at once.
        run: From a batch's items to as many results.
        batch_size: The most items in a batch.
    """
    waiting: dict[Hashable, list[tuple[int, Item]]] = {}
    done: dict[int, Result] = {}
    position = 0  # of the next result to give

    def flush(size: Hashable) -> None:
        batch = waiting.pop(size)
        results = run([item for _, item in batch])
        done.update(zip((index for index, _ in batch), results, strict=True))

    for index, item in enumerate(items):
        size = size_of(item)
        waiting.setdefault(size, []).append((index, item))
        if size is None or len(waiting[size]) == batch_size:
            flush(size)
        if index - position + 1 >= WINDOW * batch_size and position not in done:
            flush(next(size for size, batch in waiting.items() if batch[0][0] == position))
        while position in done:
            yield done.pop(position)
            position += 1
    while waiting:
        flush(min(waiting, key=lambda size: waiting[size][0][0]))
        while position in done:
            yield done.pop(position)
            position += 1


def read_ahead(read: Callable[[Source], Item], sources: Iterable[Source], ahead: int) -> Iterator[Item]:
    """`read` of each source, in order; up to `ahead` are read in threads while the others are worked on."""
    with ThreadPoolExecutor(LOADERS) as threads:
        reading: deque[Future[Item]] = deque()
        for source in sources:
            reading.append(threads.submit(read, source))
            if len(reading) > ahead:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()
