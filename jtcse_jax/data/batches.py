"""Packed batches by step: a function of (cache, seed, step), the same on any number of shards.

The step alone determines the position in the data. Each epoch has its own order, and a batch is a
part of it (`data.shuffling`); grain reads ahead; every shard computes the packing plan of the whole
batch from the cached lengths and fills only its own rows.
"""

import math
import queue
import threading
from collections.abc import Iterable, Iterator, Sequence

import grain
import jax
import numpy as np

from jtcse_jax.batch import Batch
from jtcse_jax.config import DataConfig
from jtcse_jax.data.packing import most_rows, usual_row_length, usual_slots
from jtcse_jax.data.shuffling import shuffled
from jtcse_jax.data.similar_batches import SimilarBatches
from jtcse_jax.data.tokens import TokenCache
from jtcse_jax.data.views import Plan, Views, check_batch, longest_view
from jtcse_jax.errors import Hung

_MEASURED_BATCHES = 256
_MOST_STEPS = 2**62  # a batch exists for each of them
_READ_THREADS = 2
_READ_AHEAD = 8


class PackedBatches:
    """The batches of a token cache: `batches[step]` is the numpy `Batch` of a step.

    An item is a sentence with its views, as described in `data.views`. Each epoch visits every item
    once. Its last batch may be partial: missing views have `mask` False and point to slot 0. A
    teacher's caches hold the same sentences in the tokens of its members; their rows are part of
    the batch, as `Batch.teacher`. Micro-batches are packed separately and stacked.

    The batch and each teacher's rows have a usual number of rows. If one of these is too small, all
    take the number that always fits, so there are at most two shapes.

    Attributes:
        num_items: items of an epoch.
        views_per_item: 1 without pairs, 2, or more with hard negatives.
        steps_per_epoch: batches of an epoch, the partial one included.
        usual_rows: rows (of all shards) of nearly all micro-batches, measured by packing some.
        most_rows: rows (of all shards) that are enough for any micro-batch.
        row_length: tokens of a row.
    """

    num_items: int
    views_per_item: int
    steps_per_epoch: int
    usual_rows: int
    most_rows: int
    row_length: int

    def __init__(
        self,
        cache: TokenCache,
        data: DataConfig,
        *,
        seed: int,
        positions: int | None = None,
        similar: SimilarBatches | None = None,
        row_multiple: int = 1,
        shard: tuple[int, int] = (0, 1),
        teachers: Sequence[TokenCache] = (),
    ):
        """Measures the usual rows.

        Args:
            cache: the tokenised sentences.
            data: the sizes of batches, micro-batches and rows, and the kind of views. If
                `row_length` or `slots` is None, `data.packing` chooses it for the longest view.
                Without `micro_batch`, batches have no leading axis.
            seed: seed of the shuffling and of the repeated words, 0 to 2**32 - 1.
            positions: most tokens of a view with repeated words, as many as the model can read, at
                least the `max_len` of the cache; by default the row length.
            similar: the order that groups similar sentences; None for random batches.
            row_multiple: row counts are rounded up to a multiple of it (the data axis).
            shard: (index, count): the row arrays hold the index-th of count equal ranges of
                rows; `order` and `mask` are always those of the whole batch.
            teachers: the same text in the tokens of each member of a teacher.

        Raises:
            UserError: the text has fewer items than a batch or does not fit `data.pairs`, or a
                cache is damaged.
            ValueError: an impossible shard, or a count that does not divide `row_multiple`.
        """
        index, count = shard
        if not 0 <= index < count or row_multiple % count:
            raise ValueError(f"shard {shard} does not divide rows in multiples of {row_multiple}")
        self._data, self._similar, self._seed, self._shard = data, similar, seed, shard
        self._starts = range(0, data.batch_size, data.micro_batch or data.batch_size)
        self.row_length, slots, self._views = _views((cache, *teachers), data, positions)
        self.num_items, self.views_per_item = self._views[0].num_items, self._views[0].per_item
        check_batch(self.num_items, data)
        if any(each.num_items != self.num_items for each in self._views):
            raise ValueError("a teacher's cache holds another text")
        # One generator per step: repeated words differ from epoch to epoch.
        self._batches = grain.MapDataset.range(_MOST_STEPS).seed(seed).random_map(self._pack_batch)
        self.steps_per_epoch = math.ceil(self.num_items / data.batch_size)
        most = max(
            most_rows(views.per_item * self._starts.step, views.longest, self.row_length, slots)
            for views in self._views
        )
        self.most_rows = _round_up(most, row_multiple)
        self._usual_rows = self._measure_rows(row_multiple)
        self.usual_rows = self._usual_rows[0]

    def __getitem__(self, step: int) -> Batch:
        """The batch of a step, counted from 0 through all epochs, in any order."""
        if step < 0:
            raise IndexError(f"step {step} is negative")
        batch = self._batches[step]
        assert batch is not None  # `_pack_batch` always returns one
        return batch

    def iterate(
        self, start_step: int, stop_step: int, *, timeout: float | None = None
    ) -> Iterator[tuple[int, Batch]]:
        """(step, batch) of the steps from `start_step` up to, not including, `stop_step`.

        Threads pack the next batches while the caller works. Raises Hung if a batch takes more
        than `timeout` seconds.
        """
        if not 0 <= start_step <= stop_step:
            raise IndexError(f"steps {start_step} to {stop_step} are not a range")
        options = grain.ReadOptions(num_threads=_READ_THREADS, prefetch_buffer_size=_READ_AHEAD)
        ahead = self._batches.slice(slice(start_step, stop_step)).to_iter_dataset(options)
        yield from zip(range(start_step, stop_step), _timed(ahead, timeout), strict=True)

    def _measure_rows(self, multiple: int) -> list[int]:
        """For each cache the number of rows with the least expected work over the first batches.

        It is rounded up to a multiple of `multiple`. The work of a batch is its rows: the usual
        number if it fits, else `most_rows`. If the usual number is too small, many batches take the
        large shape; if it is too large, every batch wastes rows.
        """
        measured = min(_MEASURED_BATCHES, self.steps_per_epoch)
        rng = np.random.default_rng(0)
        plans = [self._plan(step, rng) for step in range(measured)]
        share_fitting = np.arange(1, measured + 1) / measured
        usual = []
        for every in zip(*plans, strict=True):
            rows = np.sort([max(plan.packing.num_rows for plan in micro) for micro in every])
            work = share_fitting * rows + (1 - share_fitting) * self.most_rows
            usual.append(min(_round_up(int(rows[work.argmin()]), multiple), self.most_rows))
        return usual

    def _items(self, step: int) -> np.ndarray:
        """The numbers of the items in the batch of a step."""
        epoch, number = divmod(step, self.steps_per_epoch)
        size, seed = self._data.batch_size, (self._seed, epoch)
        if self._similar is not None:
            return self._similar.items(number, size, self._data.random_share, seed)
        positions = np.arange(number * size, min((number + 1) * size, self.num_items))
        return shuffled(positions, self.num_items, seed)

    def _plan(self, step: int, rng: np.random.Generator) -> list[list[Plan]]:
        """The plans of every micro-batch of a step, for each cache."""
        items, epoch = self._items(step), step // self.steps_per_epoch
        parts = [items[start : start + self._starts.step] for start in self._starts]
        return [[views.plan(part, epoch, rng) for part in parts] for views in self._views]

    def _pack_batch(self, step: int, rng: np.random.Generator) -> Batch:
        plans = self._plan(step, rng)
        fits = all(
            plan.packing.num_rows <= usual
            for micro, usual in zip(plans, self._usual_rows, strict=True)
            for plan in micro
        )
        index, count = self._shard
        batches = []
        for views, micro, usual in zip(self._views, plans, self._usual_rows, strict=True):
            rows = usual if fits else self.most_rows
            mine = range(index * rows // count, (index + 1) * rows // count)
            filled = [views.fill(plan, rows, mine, self._starts.step) for plan in micro]
            stacked = jax.tree.map(lambda *arrays: np.stack(arrays), *filled)
            batches.append(stacked if self._data.micro_batch else filled[0])
        return batches[0]._replace(teacher=tuple(batches[1:]))


def _views(
    caches: Sequence[TokenCache], data: DataConfig, positions: int | None
) -> tuple[int, int, list[Views]]:
    """Tokens and slots of a row, and the views of each cache: of the text, then of its teachers."""
    longest = longest_view(caches[0].max_len, data, positions)
    row_length = data.row_length or usual_row_length(
        max(longest, *(cache.max_len for cache in caches))
    )
    slots = data.slots or usual_slots(row_length)
    size = {"row_length": row_length, "slots": slots, "longest_view": longest}
    views = [Views(cache, data, **size, once=number > 0) for number, cache in enumerate(caches)]
    return row_length, slots, views


def _timed(batches: Iterable[Batch], timeout: float | None) -> Iterator[Batch]:
    """The same batches, requested in a thread, because a read may hang but the caller must not."""
    if timeout is None:
        yield from batches
        return
    # One worker: an iterator is used by one thread at a time. It is a daemon thread, so a hung read
    # does not keep the process alive.
    asked: queue.SimpleQueue[bool] = queue.SimpleQueue()
    answers: queue.SimpleQueue[Batch | BaseException | None] = queue.SimpleQueue()

    def answer() -> None:
        try:
            waiting = iter(batches)
            while asked.get():
                answers.put(next(waiting, None))
        except BaseException as error:
            answers.put(error)

    threading.Thread(target=answer, daemon=True).start()
    try:
        while True:
            asked.put(True)
            try:
                batch = answers.get(timeout=timeout)
            except queue.Empty:
                raise Hung(
                    f"no batch came for {timeout:g} s (data.timeout): the disk of data.cache_dir "
                    "may hang or the machine may be overloaded; start again once it responds."
                ) from None
            if isinstance(batch, BaseException):
                raise batch
            if batch is None:
                return
            yield batch
    finally:
        asked.put(False)


def _round_up(rows: int, multiple: int) -> int:
    return -(-rows // multiple) * multiple
