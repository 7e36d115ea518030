"""Packs sentences into rows of fixed length: the plan (`pack`) and the arrays (`fill`).

The plan needs the lengths alone, so every process computes the plan of the whole batch and fills
only the rows it owns.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Packing:
    """Where each of n sentences lies in a grid of rows."""

    rows: np.ndarray  #: [n] int32, the row of a sentence
    starts: np.ndarray  #: [n] int32, the position of its first token in the row
    slot_of: np.ndarray  #: [n] int32, its slot in the row, from 0 in order of `starts`
    num_rows: int  #: rows used
    slots: int  #: slots a row has

    @property
    def order(self) -> np.ndarray:
        """[n] int32, the flat slot index `row * slots + slot` of each sentence."""
        return self.rows * np.int32(self.slots) + self.slot_of


def pack(lengths: np.ndarray, row_length: int, slots: int, group: int = 1) -> Packing:
    """Best-fit-decreasing packing of groups of `group` consecutive sentences, each in one row.

    The longest group goes first, each into the row where it leaves the least room, into a new
    row where none has room; a row is full when its tokens or its slots are used. Ties go to the
    lower sentence and the row touched last, so that the plan is a function of the arguments.

    Args:
        lengths: [n] tokens of each sentence, at least 1; n is a multiple of `group`.
        row_length: tokens a row holds.
        slots: sentences a row holds.
        group: sentences that must stay together.

    Raises:
        ValueError: a length below 1, a group that fits no row, or n no multiple of `group`.
    """
    lengths = np.asarray(lengths, np.int64)
    if len(lengths) % group:
        raise ValueError(f"{len(lengths)} sentences are not whole groups of {group}")
    if slots < group:
        raise ValueError(f"a row of {slots} slots cannot hold a group of {group} sentences")
    grouped = lengths.reshape(-1, group)
    sizes = grouped.sum(axis=1)
    if len(lengths) and lengths.min() < 1:
        raise ValueError(f"sentence {lengths.argmin()} has no tokens")
    if len(sizes) and sizes.max() > row_length:
        raise ValueError(
            f"group {sizes.argmax()} has {sizes.max()} tokens, more than a row of {row_length}"
        )
    rows, starts, places, num_rows = _best_fit_decreasing(sizes, row_length, slots // group)
    inside = np.cumsum(grouped, axis=1) - grouped
    return Packing(
        rows=np.repeat(rows, group),
        starts=(starts[:, None] + inside).reshape(-1).astype(np.int32),
        slot_of=(places[:, None] * group + np.arange(group)).reshape(-1).astype(np.int32),
        num_rows=num_rows,
        slots=slots,
    )


def fill(
    packing: Packing,
    sentences: Callable[[int], np.ndarray],
    lengths: np.ndarray,
    num_rows: int,
    row_length: int,
    slots: int,
    pad_id: int,
    rows: slice | range | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The row arrays of a `Batch`, for the asked rows of a grid of `num_rows` rows.

    Args:
        packing: the plan of all sentences.
        sentences: gives the token ids [lengths[i]] of sentence i; asked only for those needed.
        lengths: [n], as given to `pack`.
        num_rows: rows of the whole grid, at least `packing.num_rows`; the rest are fillers.
        row_length: as given to `pack`.
        slots: as given to `pack`.
        pad_id: the token of the fillers.
        rows: the rows wanted, all of them if None.

    Returns:
        tokens, positions, segments [len(rows), row_length] and cls_positions
        [len(rows), slots], all int32, as `Batch` describes them.

    Raises:
        ValueError: the plan needs more than `num_rows` rows or has another number of slots, or
            a sentence has not the length it was packed with.
    """
    if packing.num_rows > num_rows or packing.slots != slots:
        raise ValueError(
            f"a plan of {packing.num_rows} rows of {packing.slots} slots does not fit a grid of "
            f"{num_rows} rows of {slots}"
        )
    if rows is None:
        rows = slice(None)
    wanted = range(num_rows)[rows] if isinstance(rows, slice) else rows
    local_row = np.full(num_rows, -1)
    local_row[wanted] = np.arange(len(wanted))

    here = np.flatnonzero(local_row[packing.rows] >= 0)
    row, slot, start = local_row[packing.rows[here]], packing.slot_of[here], packing.starts[here]
    length = np.asarray(lengths, np.int64)[here]
    position = np.arange(length.sum()) - np.repeat(np.cumsum(length) - length, length)
    place = np.repeat(row * row_length + start, length) + position

    shape = (len(wanted), row_length)
    tokens = np.full(shape, pad_id, np.int32)
    positions = np.zeros(shape, np.int32)
    segments = np.zeros(shape, np.int32)
    cls_positions = np.zeros((len(wanted), slots), np.int32)
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
    sizes: np.ndarray, row_length: int, per_row: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Row, start and place in the row (each [len(sizes)] int32) of every group; rows used."""
    rows, starts, places = np.zeros((3, len(sizes)), np.int32)
    by_room: list[list[int]] = [[] for _ in range(row_length + 1)]
    # Bit f says that by_room[f] is not empty: the tightest row is then one shift and one lowest
    # set bit away, whatever the number of rows.
    rooms = 0
    count: list[int] = []
    by_size = np.argsort(-sizes, kind="stable")
    placed = []
    for size in sizes[by_size].tolist():
        fitting = rooms >> size
        if fitting:
            room = size + (fitting & -fitting).bit_length() - 1
            row = by_room[room].pop()
            if not by_room[room]:
                rooms ^= 1 << room
        else:
            room, row = row_length, len(count)
            count.append(0)
        placed.append((row, row_length - room, count[row]))
        count[row] += 1
        room -= size
        if count[row] < per_row:
            by_room[room].append(row)
            rooms |= 1 << room
    if placed:
        rows[by_size], starts[by_size], places[by_size] = np.array(placed, np.int32).T
    return rows, starts, places, len(count)
