"""The views of a batch's sentences, and the rows that hold them.

| `pairs` | the views of item i |
|---|---|
| `same` | sentence i, twice |
| `adjacent` | sentences i and i + 1 of the text |
| `repeat` | sentence i, and the same sentence with some words repeated |
| `none` | only sentence i |

In a cache of pairs, `same` means the pair itself, sentences 2i and 2i + 1, and any hard negatives
that follow it in the text. With several positives, item i is anchor i, one of its positives and its
hard negatives. The positive is another one in each epoch, so the views of an anchor are never in
two items of a batch.

A view with repeated words keeps every token of its sentence, so it may be longer than `max_len`.
If it has too little room, fewer words are repeated.
"""

from typing import NamedTuple

import numpy as np

from jtcse_jax.batch import Batch
from jtcse_jax.config import DataConfig
from jtcse_jax.data.augmentation import most_repeated, repeat_words
from jtcse_jax.data.packing import Packing, fill, pack
from jtcse_jax.data.tokens import TokenCache
from jtcse_jax.errors import UserError


def longest_view(max_len: int, data: DataConfig, positions: int | None) -> int:
    """Most tokens of a view, in a long enough row, for sentences of at most `max_len` tokens.

    `positions`, if given, is the number of positions of the model, at least `max_len`.
    """
    if data.pairs != "repeat":
        return max_len
    longest = max_len + most_repeated(max_len - 2, data.repeat_rate)
    return longest if positions is None else min(longest, positions)


def views_per_item(views: int, data: DataConfig) -> int:
    """Views of an item of a text with `views` sentences a line: 1, 2, or more with hard negatives.

    Raises UserError if `data.pairs` is for single sentences, but the text holds pairs, and if there
    are no `data.positives` in a line.
    """
    if data.pairs == "none":
        return 1
    if views > 1 and data.pairs in ("adjacent", "repeat"):
        raise UserError(
            f'data.pairs = "{data.pairs}" is for single sentences, but {data.source} holds pairs; '
            'leave it at "same"'
        )
    if data.positives > max(views - 1, 1):
        raise UserError(
            f"data.positives = {data.positives}: {data.source} has {views} sentences a line; name "
            "the columns of the anchor and of as many positives in data.columns"
        )
    return max(views, 2) - (data.positives - 1)


def items_stride(views: int, pairs: str) -> int:
    """The sentence of a text, with `views` a line, at which item i begins is i times this."""
    return 1 if pairs == "none" else views


def count_items(sentences: int, views: int, pairs: str) -> int:
    """Items of an epoch of a text with `views` sentences a line; `pairs` as in `Views`."""
    return sentences // items_stride(views, pairs) - (pairs == "adjacent")


def check_batch(items: int, data: DataConfig) -> None:
    """Raises UserError if a batch needs more than the text's items."""
    if items < data.batch_size:
        raise UserError(
            f"{data.source} has {items} sentences (or lines of pairs), fewer than one batch: lower "
            f"data.batch_size from {data.batch_size} or give more text"
        )


class Plan(NamedTuple):
    """The place of each view of a batch, known before any token is read."""

    sentences: np.ndarray  #: [n] cached sentence of each packed view
    repeated: dict[int, np.ndarray]  #: token positions of the views whose words are repeated
    packing: Packing
    order: np.ndarray  #: [views] int32, the slot of each view; two may share one


class Views:
    """Turns item numbers into packed views.

    Attributes:
        num_items: number of items.
        per_item: views of an item: 1, 2, or more with hard negatives.
        longest: most tokens of a view.
    """

    num_items: int
    per_item: int
    longest: int

    def __init__(
        self,
        cache: TokenCache,
        data: DataConfig,
        *,
        row_length: int,
        slots: int,
        longest_view: int | None = None,
        once: bool = False,
    ):
        """Checks that the kind of views fits the text.

        Args:
            cache: the tokenised sentences.
            data: its `pairs` (see the module's table), `positives` and `repeat_rate`.
            row_length: tokens a row holds, at least the longest sentence.
            slots: sentences a row holds.
            longest_view: most tokens of a view with repeated words, at least the longest sentence;
                by default the row length.
            once: pack each distinct sentence of a batch once, unchanged, and let its views share
                the slot; for an encoder without dropout.

        Raises:
            UserError: as `views_per_item`.
        """
        pairs = data.pairs
        self.per_item = views_per_item(cache.views, data)
        if pairs == "adjacent" or cache.views > 1:
            self._offsets = np.arange(self.per_item)
        else:
            self._offsets = np.zeros(self.per_item, np.int64)
        self._positives = data.positives if self.per_item > 1 else 1
        self._offsets[2:] += self._positives - 1  # hard negatives are behind all positives
        self._stride = items_stride(cache.views, pairs)
        self.num_items = count_items(len(cache), cache.views, pairs)
        self._repeat_rate = data.repeat_rate if pairs == "repeat" and not once else None
        self._cache = cache
        self._row_length = row_length
        longest = cache.max_len if self._repeat_rate is None else longest_view or row_length
        self.longest = min(longest, row_length)
        self._slots = slots
        self._once = once

    def plan(self, items: np.ndarray, epoch: int, rng: np.random.Generator) -> Plan:
        """The plan of a batch of items [n] in an epoch; `rng` draws the repeated words.

        Raises UserError if the cache has impossible lengths.
        """
        views = items[:, None] * self._stride + self._offsets
        if self._positives > 1:
            views[:, 1] += (items + epoch) % self._positives
        sentences = views.reshape(-1)
        inverse = np.arange(len(sentences))
        if self._once:
            sentences, inverse = np.unique(sentences, return_inverse=True)
        lengths = self._cache.lengths[sentences].astype(np.int64)
        for length in (lengths.min(initial=1), lengths.max(initial=1)):
            if not 1 <= length <= self._cache.max_len:
                raise self._cache.damaged(
                    f"a sentence of {length} tokens, not of 1 to {self._cache.max_len}"
                )
        repeated = {}
        if self._repeat_rate is not None:
            for view in range(1, len(sentences), 2):
                repeated[view] = self._repeat(lengths[view], self._repeat_rate, rng)
                lengths[view] = len(repeated[view])
        packing = pack(lengths, self._row_length, self._slots)
        return Plan(sentences, repeated, packing, packing.order[inverse])

    def fill(self, plan: Plan, num_rows: int, rows: range, batch_size: int) -> Batch:
        """The batch of a plan: `rows` of a grid of `num_rows`, and the order of all views.

        Views missing from a batch of fewer than `batch_size` items have `mask` False and point to
        slot 0. Raises UserError if the cache has impossible tokens.
        """
        arrays = fill(
            plan.packing,
            lambda view: self._read(plan, view),
            num_rows,
            self._cache.pad_id,
            rows,
        )
        # A gather on the device would silently take the nearest row of the table.
        highest = arrays[0].view(np.uint32).max()
        if highest >= self._cache.vocab_size:
            raise self._cache.damaged(
                f"token id {highest}, in a vocabulary of {self._cache.vocab_size}"
            )
        order = np.zeros(self.per_item * batch_size, np.int32)
        order[: len(plan.order)] = plan.order
        count = len(plan.order) // self.per_item
        return Batch(*arrays, order, np.arange(batch_size) < count)

    def _repeat(self, length: int, rate: float, rng: np.random.Generator) -> np.ndarray:
        """Token positions of a sentence with repeated words; [CLS] and [SEP] are not repeated."""
        room = self.longest - length
        words = repeat_words(range(1, length - 1), rate, rng, room)
        return np.array([0, *words, length - 1])

    def _read(self, plan: Plan, view: int) -> np.ndarray:
        tokens = self._cache.sentence(plan.sentences[view])
        return tokens[plan.repeated[view]] if view in plan.repeated else tokens
