"""Packs sentences into rows of fixed length: the plan (`pack`) and the arrays (`fill`).

The plan needs only the lengths, so every process computes the plan of the whole batch and fills
only its own rows.
"""

from bisect import bisect_left, insort
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packing:
    """Where each of n sentences lies in a grid of rows."""

    lengths: np.ndarray  #: [n] int64, the tokens of a sentence
    rows: np.ndarray  #: [n] int32, the row of a sentence
    starts: np.ndarray  #: [n] int32, the position of its first token in the row
    slot_of: np.ndarray  #: [n] int32, its slot in the row, from 0 in order of `starts`
    num_rows: int  #: rows used
    row_length: int  #: tokens a row holds
    slots: int  #: sentences a row holds

    @property
    def order(self) -> np.ndarray:
        """[n] int32, the flat slot index `row * slots + slot` of each sentence."""
        return self.rows * np.int32(self.slots) + self.slot_of


def usual_row_length(longest: int) -> int:
    """The default row length, in tokens, for views of at most `longest` tokens.

    It is short: a longer row is hardly fuller, and computes more attention that is then masked. It
    is a multiple of 8, as the tiles of accelerators require.
    """
    return max(64, -(-longest // 8) * 8)


def usual_slots(row_length: int) -> int:
    """The default number of sentences in a row: one for every ten tokens."""
    return max(1, row_length // 10)


def most_rows(count: int, longest: int, row_length: int, slots: int) -> int:
    """Rows that are always enough for `count` sentences of at most `longest` tokens.

    A new row is begun only if no other has room, and then each of them holds at least this many
    sentences: min(row_length // longest, slots).
    """
    return -(-count // min(row_length // longest, slots))


def pack(lengths: np.ndarray, row_length: int, slots: int) -> Packing:
    """Best-fit-decreasing packing.

    Sentences are placed from the longest to the shortest, each into the row where it leaves the
    least room, or into a new row if it fits in none. A row is full when its tokens or its slots are
    used up. Ties go to the lower sentence, the fuller slots and the row touched last, so the plan
    is a function of the arguments.

    Args:
        lengths: [n] tokens of each sentence, at least 1.
        row_length: tokens a row holds.
        slots: sentences a row holds, at least 1.

    Raises:
        ValueError: a length below 1 or above `row_length`, or no slots.
    """
    lengths = np.asarray(lengths, np.int64)
    if slots < 1:
        raise ValueError(f"a row of {slots} slots holds no sentence")
    if len(lengths) and lengths.min() < 1:
        raise ValueError(f"sentence {lengths.argmin()} has no tokens")
    if len(lengths) and lengths.max() > row_length:
        raise ValueError(
            f"sentence {lengths.argmax()} has {lengths.max()} tokens, more than a row of "
            f"{row_length}"
        )
    plan = _best_fit_decreasing(lengths, row_length, slots)
    return Packing(lengths, *plan, row_length, slots)


def fill(
    packing: Packing,
    sentences: Callable[[int], np.ndarray],
    num_rows: int,
    pad_id: int,
    rows: range | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The row arrays of a `Batch`, for the requested rows of a grid of `num_rows` rows.

    Args:
        packing: the plan of all sentences.
        sentences: returns the token ids of sentence i; called only for those needed.
        num_rows: rows of the whole grid, at least `packing.num_rows`; the rest are fillers.
        pad_id: the token of the fillers.
        rows: the requested rows; None for all.

    Returns:
        tokens, positions, segments [len(rows), row_length] and cls_positions
        [len(rows), slots], all int32, as `Batch` describes them.

    Raises:
        ValueError: the plan needs more than `num_rows` rows, or the length of a sentence is not the
            one it was packed with.
    """
    if packing.num_rows > num_rows:
        raise ValueError(f"a plan of {packing.num_rows} rows does not fit a grid of {num_rows}")
    if rows is None:
        rows = range(num_rows)
    here = np.flatnonzero((packing.rows >= rows.start) & (packing.rows < rows.stop))
    row, slot, start = packing.rows[here] - rows.start, packing.slot_of[here], packing.starts[here]
    length = packing.lengths[here]
    position = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    place = np.repeat(row * packing.row_length + start, length) + position

    shape = (len(rows), packing.row_length)
    tokens = np.full(shape, pad_id, np.int32)
    positions = np.zeros(shape, np.int32)
    segments = np.zeros(shape, np.int32)
    cls_positions = np.zeros((len(rows), packing.slots), np.int32)
    if len(here):
        ids = np.concatenate([sentences(index) for index in here.tolist()])
        if len(ids) != len(place):
            raise ValueError(f"{len(ids)} tokens came for sentences packed as {len(place)}")
        tokens.reshape(-1)[place] = ids
        positions.reshape(-1)[place] = position
        segments.reshape(-1)[place] = np.repeat(slot + 1, length)
        cls_positions[row, slot] = start
    return tokens, positions, segments, cls_positions


def _best_fit_decreasing(
    lengths: np.ndarray, row_length: int, slots: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Row, start and slot (each [len(lengths)] int32) of every sentence; rows used.

    All sentences of one length are placed at once into rows of the same kind, so the number of
    steps depends on the numbers of lengths and kinds, not on the batch size. The kind of a row is
    its remaining (tokens, slots).
    """
    of_kind: dict[tuple[int, int], list[int]] = {}
    kinds: list[tuple[int, int]] = []  # of the rows with a free slot, the tightest first
    num_rows = 0
    touched: list[int] = []  # rows of all steps, step after step
    steps = []  # rows touched, start, slot, sentences per row, their length
    how_many = np.bincount(lengths)
    for length in np.flatnonzero(how_many)[::-1].tolist():
        left = int(how_many[length])
        while left:
            at = bisect_left(kinds, (length, 0))
            kind = room, free = kinds[at] if at < len(kinds) else (row_length, slots)
            count = min(room // length, free, left)
            if at < len(kinds):
                rows = of_kind[kind][: -(left // count) - 1 : -1]  # the rows touched last
                del of_kind[kind][-len(rows) :]
                if not of_kind[kind]:
                    del of_kind[kind], kinds[at]
            else:
                rows = range(num_rows, num_rows + left // count)
                num_rows = rows.stop
            touched += rows
            steps.append((len(rows), row_length - room, slots - free, count, length))
            left -= len(rows) * count
            if free > count:
                kind = room - count * length, free - count
                if kind not in of_kind:
                    of_kind[kind] = []
                    insort(kinds, kind)
                of_kind[kind] += rows
    rows, starts, slot_of = np.zeros((3, len(lengths)), np.int32)
    if steps:
        by_length = np.argsort(-lengths, kind="stable")
        each, *others = np.array(steps, np.int32).T
        start, slot, count, length = (np.repeat(other, each) for other in others)
        nth = np.arange(len(lengths), dtype=np.int32) - np.repeat(np.cumsum(count) - count, count)
        rows[by_length] = np.repeat(touched, count)
        starts[by_length] = np.repeat(start, count) + nth * np.repeat(length, count)
        slot_of[by_length] = np.repeat(slot, count) + nth
    return rows, starts, slot_of, num_rows
