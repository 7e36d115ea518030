"""The most similar pairs of many vectors, in parts, so that n x n cosines never exist.

Exactly, in tiles; or among the nearest neighbours of each vector that an index gives.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from jtcse_jax.encoding.exact_index import Vectors
from jtcse_jax.encoding.index import Index

# Vectors compared at once, a tile of 64 MiB of cosines. COLUMNS must not be smaller than ROWS.
ROWS, COLUMNS = 1024, 16_384
SLAB = 2**20  # cosines of a tile whose best ones are chosen at once
NEIGHBOURS = 100  # of each vector, in `near_pairs`; as in sentence-transformers

PAIR = np.dtype([("cosine", "<f4"), ("first", "<i8"), ("second", "<i8")])


def best_pairs(
    vectors: Vectors,
    top: int,
    threshold: float | None = None,
    *,
    rows: range | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """The pairs of highest cosine, each once.

    Args:
      vectors: [n, D], of length 1.
      top: largest number of pairs, at least 1.
      threshold: smallest cosine of a pair; by default no limit.
      rows: take only the pairs whose first vector is one of these; by default all.
      done: is called repeatedly with the number of newly compared rows.

    Returns:
      [k] of dtype PAIR, best first, with `first` < `second`. Pairs of equal cosine are in the order
      of their numbers; which of them are left out at the end is not defined.
    """
    rows = range(len(vectors)) if rows is None else rows
    best = _Best(top, -np.inf if threshold is None else threshold)
    for start in range(rows.start, rows.stop, ROWS):
        block = vectors[start : min(start + ROWS, rows.stop)]
        for column in range(start, len(vectors), COLUMNS):
            best.add(_tile(vectors, block, start, column), start, column)
        done(len(block))
    return best.pairs()


def near_pairs(
    index: Index,
    vectors: Vectors,
    top: int,
    threshold: float | None = None,
    *,
    rows: range | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """Like `best_pairs`, but only pairs of a vector and one of its 100 nearest in `index`.

    The cosines are those of the vectors, also where the index gives approximate ones. Arguments and
    result are those of `best_pairs`; `rows` are the vectors whose neighbours are searched, so two
    parts may have the same pair.
    """
    rows = range(len(vectors)) if rows is None else rows
    best = np.empty(0, PAIR)
    for start in range(rows.start, rows.stop, ROWS):
        queries = vectors[start : min(start + ROWS, rows.stop)]
        for found in _neighbours(index, vectors, queries, start):
            if threshold is not None:
                found = found[found["cosine"] >= threshold]
            best = merged([best, found], top)
        done(len(queries))
    return best


def merged(parts: Sequence[np.ndarray], top: int) -> np.ndarray:
    """The `top` best pairs of several results of the functions above, each once, best first."""
    pairs = np.concatenate([np.empty(0, PAIR), *parts])
    pairs = pairs[np.lexsort((pairs["second"], pairs["first"]))]
    again = (pairs["first"][1:] == pairs["first"][:-1]) & (
        pairs["second"][1:] == pairs["second"][:-1]
    )
    pairs = np.delete(pairs, 1 + np.flatnonzero(again))
    return pairs[np.argsort(-pairs["cosine"], kind="stable")][:top]


def _neighbours(
    index: Index, vectors: Vectors, queries: np.ndarray, start: int
) -> Iterator[np.ndarray]:
    """Pairs of the queries, which are the vectors from `start` on, and their neighbours."""
    found = [numbers for numbers, _ in index.search(queries, NEIGHBOURS + 1)]  # and itself
    queried = np.repeat(start + np.arange(len(queries)), list(map(len, found)))
    others = np.concatenate(found)
    for begin in range(0, len(others), COLUMNS):
        a, b = queried[begin : begin + COLUMNS], others[begin : begin + COLUMNS]
        a, b = np.minimum(a, b)[a != b], np.maximum(a, b)[a != b]
        pairs = np.empty(len(a), PAIR)
        pairs["first"], pairs["second"] = a, b
        pairs["cosine"] = np.einsum("nd,nd->n", vectors[a], vectors[b])
        yield pairs


def _tile(vectors: Vectors, block: np.ndarray, start: int, column: int) -> np.ndarray:
    """The cosines of a block, which begins at `start`, with the vectors from `column` on."""
    cosines = block @ vectors[column : column + COLUMNS].T
    if column == start:  # the diagonal and what is below it
        cosines[:, : len(block)][np.tri(len(block), dtype=bool)] = np.nan
    return cosines


class _Best:
    """The best pairs of the tiles so far."""

    def __init__(self, top: int, least: float):
        self._top, self._least = top, least  # no pair below `least` can be among the best
        self._parts: list[np.ndarray] = []

    def add(self, cosines: np.ndarray, start: int, column: int) -> None:
        """Adds the pairs of a tile [rows, columns] that begins at row `start` and column `column`.

        Entries that are NaN are skipped.
        """
        width, cosines = cosines.shape[1], cosines.ravel()
        # In slabs, because of the first one all may be among the best, and their places are large.
        for begin in range(0, len(cosines), SLAB):
            slab = cosines[begin : begin + SLAB]
            places = np.flatnonzero(slab >= self._least)
            if not len(places):
                continue
            if len(places) >= self._top:
                places = places[np.argpartition(slab[places], -self._top)[-self._top :]]
                self._least = max(self._least, slab[places].min())
            found = np.empty(len(places), PAIR)
            found["cosine"] = slab[places]
            places += begin
            found["first"], found["second"] = start + places // width, column + places % width
            self._parts.append(found)
            if sum(map(len, self._parts)) >= 2 * self._top:  # seldom, so that a tile is cheap
                self._parts = [self.pairs()]
                self._least = max(self._least, self._parts[0]["cosine"][-1])

    def pairs(self) -> np.ndarray:
        """The best ones, as `best_pairs` returns them."""
        return merged(self._parts, self._top)
