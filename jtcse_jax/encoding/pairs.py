"""The most similar pairs of many vectors: exact, in tiles, so that n x n cosines never exist."""

from collections.abc import Callable, Sequence

import numpy as np

# Vectors compared at once, a tile of 64 MiB of cosines. COLUMNS must not be smaller than ROWS.
ROWS, COLUMNS = 1024, 16_384

PAIR = np.dtype([("cosine", "<f4"), ("first", "<i8"), ("second", "<i8")])


def best_pairs(
    vectors: np.ndarray,
    top: int,
    threshold: float | None = None,
    *,
    rows: range | None = None,
    done: Callable[[int], None] = lambda count: None,
) -> np.ndarray:
    """The pairs of highest cosine, each once.

    Args:
      vectors: [n, D] float32, of length 1 (see `exact_index.unit`).
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
            cosines = block @ vectors[column : column + COLUMNS].T
            if column == start:  # the diagonal and what is below it
                cosines[np.tril_indices(len(block), m=cosines.shape[1])] = np.nan
            best.add(cosines, start, column)
        done(len(block))
    return best.pairs()


def merged(parts: Sequence[np.ndarray], top: int) -> np.ndarray:
    """The `top` best pairs of several results of `best_pairs`, in the same order."""
    pairs = np.concatenate([np.empty(0, PAIR), *parts])
    return pairs[np.lexsort((pairs["second"], pairs["first"], -pairs["cosine"]))][:top]


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
        places = np.flatnonzero(cosines >= self._least)
        if len(places) >= self._top:
            places = places[np.argpartition(cosines[places], -self._top)[-self._top :]]
            self._least = max(self._least, cosines[places].min())
        found = np.empty(len(places), PAIR)
        found["cosine"] = cosines[places]
        found["first"], found["second"] = start + places // width, column + places % width
        self._parts.append(found)
        if sum(map(len, self._parts)) >= 2 * self._top:  # seldom, so that a tile is cheap
            self._parts = [self.pairs()]
            self._least = max(self._least, self._parts[0]["cosine"][-1])

    def pairs(self) -> np.ndarray:
        """The best ones, as `best_pairs` returns them."""
        return merged(self._parts, self._top)
