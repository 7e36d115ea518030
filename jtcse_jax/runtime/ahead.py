"""Computes the next results of a sequence in threads, while the caller uses an earlier one."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_ahead(
    function: Callable[[Item], Result], items: Iterable[Item], count: int
) -> Generator[Result, None, None]:
    """Yields `function(item)` for each item, in order; `count` threads compute the next `count`.

    An exception of `function` is raised when its result is due. Close the iterator
    (`contextlib.closing`) if it may be abandoned: its threads end with the results they compute.
    """
    with ThreadPoolExecutor(count) as threads:
        results = (threads.submit(function, item) for item in items)
        pending = deque(islice(results, count))
        while pending:
            result = pending.popleft().result()
            pending.extend(islice(results, 1))
            yield result
