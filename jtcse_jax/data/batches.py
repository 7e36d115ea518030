"""Packed batches by step: a function of (cache, seed, step), the same on any number of shards.

The position in the data is the step alone. Grain shuffles the items without storing a
permutation, a new order each epoch, and reads ahead; every shard computes the packing plan of
the whole batch from the cached lengths and fills only its own rows.
"""

import math
from collections.abc import Iterator
from typing import Literal

import grain
import numpy as np

from jtcse_jax.batch import Batch
from jtcse_jax.data.packing import Packing, fill, pack
from jtcse_jax.data.tokens import TokenCache
from jtcse_jax.errors import UserError

_VIEWS = 2
_MEASURED_BATCHES = 256
_READ_THREADS = 2
_READ_AHEAD = 8


class PackedBatches:
    """The batches of a token cache, each at its step: `batches[step]` is a numpy `Batch`.

    An item is a sentence with its two views, which always share a row. In a cache of pairs
    item i is the pair (2i, 2i + 1). In a cache of single sentences it is (i, i), one sentence
    read twice (`pairs="same"`), or (i, i + 1), neighbours in the text (`pairs="adjacent"`).
    Each epoch visits every item once; its last batch may be partial: the views it lacks have
    `mask` False and point to slot 0.

    A batch has `usual_rows` rows, or `most_rows` where that is too few: two shapes at most.

    Attributes:
        num_items: items of an epoch.
        steps_per_epoch: batches of an epoch, the partial one included.
        usual_rows: rows (of all shards) of nearly all batches, measured by packing.
        most_rows: rows (of all shards) that hold any batch, one pair a row.
    """

    num_items: int
    steps_per_epoch: int
    usual_rows: int
    most_rows: int

    def __init__(
        self,
        cache: TokenCache,
        *,
        batch_size: int,
        row_length: int,
        slots: int,
        seed: int,
        pairs: Literal["same", "adjacent"] = "same",
        row_multiple: int = 1,
        shard: tuple[int, int] = (0, 1),
    ):
        """Checks the fields and measures `usual_rows`.

        Args:
            cache: the tokenised sentences.
            batch_size: items in a batch, over all shards.
            row_length: tokens a row holds, at least two sentences of the cache's `max_len`.
            slots: sentences a row holds, even.
            seed: of the shuffling, 0 to 2**32 - 1.
            pairs: what the second view is where the cache has single sentences.
            row_multiple: row counts are rounded up to a multiple of it (the data axis).
            shard: (index, count): the row arrays hold the index-th of count equal runs of
                rows; `order` and `mask` stay those of the whole batch.

        Raises:
            UserError: a field that cannot work, by its name in the config.
            ValueError: a shard that is none, or a count that does not divide `row_multiple`.
        """
        self.num_items = _count_items(cache, pairs)
        _check_fields(cache, batch_size, row_length, slots, seed, self.num_items)
        index, count = shard
        if not 0 <= index < count or row_multiple % count:
            raise ValueError(f"shard {shard} does not divide rows in multiples of {row_multiple}")
        self._cache = cache
        self._batch_size = batch_size
        self._row_length = row_length
        self._slots = slots
        self._adjacent = pairs == "adjacent"
        self._shard = shard
        self._items = (
            grain.MapDataset.range(self.num_items)
            .seed(seed)
            .shuffle()
            .batch(batch_size, drop_remainder=False, batch_fn=np.array)
            .repeat()
        )
        self._batches = self._items.map(self._pack_batch)
        self.steps_per_epoch = math.ceil(self.num_items / batch_size)
        self.most_rows = _round_up(batch_size, row_multiple)
        self.usual_rows = min(_round_up(self._measure_rows(), row_multiple), self.most_rows)

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, from 0; any step at any time, epoch after epoch."""
        if step < 0:
            raise IndexError(f"step {step} is negative")
        return self._batches[step]

    def iterate(self, start_step: int, stop_step: int) -> Iterator[tuple[int, Batch]]:
        """(step, batch) of the steps from `start_step` to before `stop_step`.

        Threads pack the next batches while the caller works.
        """
        if not 0 <= start_step <= stop_step:
            raise IndexError(f"steps {start_step} to {stop_step} are no range")
        options = grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=_READ_AHEAD)
        ahead = self._batches.slice(slice(start_step, stop_step)).to_iter_dataset(options)
        yield from zip(range(start_step, stop_step), ahead, strict=True)

    def _measure_rows(self) -> int:
        """The row count with the least expected work over the first batches.

        A batch costs its rows: `usual` of them if it fits, else `most_rows`. Too small a usual
        count sends many batches to the large shape, too large a one wastes rows in all.
        """
        measured = min(_MEASURED_BATCHES, self.steps_per_epoch)
        rows = np.sort([self._plan(self._items[step])[2].num_rows for step in range(measured)])
        share_fitting = np.arange(1, measured + 1) / measured
        work = share_fitting * rows + (1 - share_fitting) * self.most_rows
        return int(rows[work.argmin()])

    def _plan(self, items: np.ndarray) -> tuple[np.ndarray, np.ndarray, Packing]:
        """The cached sentence of each view [2 * len(items)], their lengths, their packing."""
        if self._cache.views == _VIEWS:
            sentences = items[:, None] * _VIEWS + (0, 1)
        else:
            sentences = items[:, None] + (0, int(self._adjacent))
        sentences = sentences.reshape(-1)
        lengths = self._cache.lengths[sentences]
        return sentences, lengths, pack(lengths, self._row_length, self._slots, group=_VIEWS)

    def _pack_batch(self, items: np.ndarray) -> Batch:
        sentences, lengths, packing = self._plan(items)
        num_rows = self.usual_rows if packing.num_rows <= self.usual_rows else self.most_rows
        index, count = self._shard
        tokens, positions, segments, cls_positions = fill(
            packing,
            lambda view: self._cache.sentence(sentences[view]),
            lengths,
            num_rows,
            self._row_length,
            self._slots,
            self._cache.pad_id,
            range(index * num_rows // count, (index + 1) * num_rows // count),
        )
        order = np.zeros(_VIEWS * self._batch_size, np.int32)
        order[: len(sentences)] = packing.order
        mask = np.arange(len(order)) < len(sentences)
        return Batch(tokens, positions, segments, cls_positions, order, mask)


def _count_items(cache: TokenCache, pairs: str) -> int:
    if pairs not in ("same", "adjacent"):
        raise UserError(f'data.pairs is "{pairs}"; it must be "same" or "adjacent"')
    if cache.views == _VIEWS:
        if pairs == "adjacent":
            raise UserError(
                f'data.pairs = "adjacent" is for single sentences, but {cache.stats["source"]} '
                'holds pairs; leave it at "same"'
            )
        return len(cache) // _VIEWS
    return len(cache) - (pairs == "adjacent")


def _check_fields(
    cache: TokenCache, batch_size: int, row_length: int, slots: int, seed: int, num_items: int
) -> None:
    if batch_size < 1:
        raise UserError(f"data.batch_size is {batch_size}; it must be at least 1")
    if num_items < batch_size:
        raise UserError(
            f"{cache.stats['source']} gives {num_items} sentences, fewer than one batch: lower "
            f"data.batch_size from {batch_size} or give more text"
        )
    if row_length < _VIEWS * cache.max_len:
        raise UserError(
            f"data.row_length is {row_length}; a row must hold both views of a sentence, at "
            f"least 2 * data.max_len = {_VIEWS * cache.max_len} tokens"
        )
    if slots < _VIEWS or slots % _VIEWS:
        raise UserError(
            f"data.slots is {slots}; it must be even and at least 2, for whole pairs share a row"
        )
    if not 0 <= seed < 2**32:
        raise UserError(f"the data seed is {seed}; it must be from 0 to 2**32 - 1")


def _round_up(rows: int, multiple: int) -> int:
    return -(-rows // multiple) * multiple
