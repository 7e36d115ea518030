"""`map_ahead` against the plain `map`, with events in place of times."""

import threading
from contextlib import closing

import pytest

from jtcse_jax.runtime.ahead import map_ahead


@pytest.mark.parametrize("count", [1, 2, 5])
@pytest.mark.parametrize("items", [0, 1, 2, 9])
def test_results_are_those_of_map_in_order(items, count):
    assert list(map_ahead(str, range(items), count)) == list(map(str, range(items)))


@pytest.mark.parametrize("count", [1, 3])
def test_the_next_results_are_computed_while_one_is_used_and_no_more(count):
    begun, ended = [], [threading.Event() for _ in range(12)]

    def compute(item):
        begun.append(item)
        ended[item].set()
        return item

    with closing(map_ahead(compute, range(len(ended)), count)) as results:
        for used in results:
            for event in ended[used : used + 1 + count]:
                assert event.wait(60)
            assert len(begun) == min(used + 1 + count, len(ended))


def test_an_error_is_raised_unchanged_when_its_result_is_due():
    error, used = ValueError("item 3"), []

    def compute(item):
        if item == 3:
            raise error
        return item

    before = threading.active_count()
    with pytest.raises(ValueError) as raised:
        used.extend(map_ahead(compute, range(9), 2))
    assert raised.value is error and used == [0, 1, 2]
    assert threading.active_count() == before


def test_no_thread_is_left_when_the_caller_fails_or_stops():
    begun = []
    before = threading.active_count()
    with pytest.raises(KeyError), closing(map_ahead(begun.append, range(99), 2)) as results:
        next(results)
        raise KeyError
    results = map_ahead(begun.append, range(99), 2)
    next(results)
    results.close()
    assert threading.active_count() == before
    assert len(begun) <= 6
