"""Batches of equal size, results in order, bounded memory."""

import itertools

import pytest

from ddetr.apis.batching import WINDOW, read_ahead, run_in_batches


@pytest.mark.parametrize('batch_size', [1, 2, 3])
def test_results_come_in_order_and_batches_are_of_one_size(batch_size):
    items = [('a', 1), ('b', 1), ('a', 2), (None, 9), ('b', 2), ('a', 3), ('c', 1), ('a', 4)]
    batches = []

    def run(batch):
        batches.append(batch)
        return [f'{size}{number}' for size, number in batch]

    results = list(run_in_batches(items, lambda item: item[0], run, batch_size))
    assert results == [f'{size}{number}' for size, number in items]
    assert all(len({size for size, _ in batch}) == 1 and len(batch) <= batch_size for batch in batches)
    assert [('a', 1), ('a', 2), ('a', 3)][:batch_size] in batches


def test_infinite_input_of_many_sizes_is_processed_in_a_bounded_window():
    """The size of the first item never recurs; it must neither block the others nor make them accumulate."""
    taken = 0

    def items():
        nonlocal taken
        for taken in itertools.count(1):
            yield 'rare' if taken == 1 else 'often'

    results = run_in_batches(items(), str, lambda batch: batch, batch_size=2)
    assert next(results) == 'rare'
    assert taken <= 2 * WINDOW
    assert list(itertools.islice(results, 100)) == ['often'] * 100
    assert taken <= 101 + 2 * WINDOW


def test_prefetching_keeps_order_and_its_limit():
    taken = []

    def sources():
        for number in range(100):
            taken.append(number)
            yield number

    results = read_ahead(lambda number: number**2, sources(), ahead=3)
    assert [next(results) for _ in range(5)] == [0, 1, 4, 9, 16]
    assert len(taken) == 8
