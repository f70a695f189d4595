"""Group images by size into batches, so that no image is padded to the size of others."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar('Item')
Result = TypeVar('Result')
Source = TypeVar('Source')

WINDOW = 8  # maximum number of batches' worth of items held back
LOADERS = 2  # threads that prefetch images


def run_in_batches(
    items: Iterable[Item],
    size_of: Callable[[Item], Hashable],
    run: Callable[[list[Item]], list[Result]],
    batch_size: int,
) -> Iterator[Result]:
    """Run batches of equally sized items, and yield the results in the order of the items.

    At most `WINDOW * batch_size` items are held back; beyond that, the oldest one runs in a smaller batch.

    Args:
        items: Items to process; may be endless.
        size_of: Returns the size of an item; batches contain only equal sizes. Items with None run alone, immediately.
        run: Maps the items of a batch to the same number of results.
        batch_size: Maximum number of items per batch.
    """
    waiting: dict[Hashable, list[tuple[int, Item]]] = {}
    done: dict[int, Result] = {}
    position = 0  # index of the next result to yield

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
    """Yield `read(source)` for each source, in order, while threads prefetch up to `ahead` of them."""
    with ThreadPoolExecutor(LOADERS) as threads:
        reading: deque[Future[Item]] = deque()
        for source in sources:
            reading.append(threads.submit(read, source))
            if len(reading) > ahead:
                yield reading.popleft().result()
        while reading:
            yield reading.popleft().result()
