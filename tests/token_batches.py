"""Batches of a token cache that is in memory."""

import dataclasses

import numpy as np

from jtcse_jax.config import DataConfig
from jtcse_jax.data.batches import PackedBatches

MAX_LEN = 16


class Sentences:
    """Stands in for a `TokenCache`: sentence i is [1000 + i, 1, 2, ...]."""

    def __init__(self, count, views=1, lengths=None):
        self.lengths = np.random.default_rng(count).integers(3, MAX_LEN + 1, count, np.uint16)
        if lengths is not None:
            self.lengths = np.asarray(lengths, np.uint16)
        self.views, self.pad_id, self.max_len = views, 7, MAX_LEN
        self.vocab_size = 1000 + count
        self.stats = {"source": "some.txt"}

    def __len__(self):
        return len(self.lengths)

    def sentence(self, index):
        tokens = np.arange(self.lengths[index], dtype=np.int32)
        tokens[0] = 1000 + index
        return tokens


def make(
    cache,
    *,
    seed=42,
    positions=None,
    similar=None,
    row_multiple=1,
    shard=(0, 1),
    teachers=(),
    **changes,
):
    sizes = {"batch_size": 8, "max_len": MAX_LEN, "row_length": 2 * MAX_LEN, "slots": 6}
    data = DataConfig(source="some.txt", **sizes)
    return PackedBatches(
        cache,
        dataclasses.replace(data, **changes),
        seed=seed,
        positions=positions,
        similar=similar,
        row_multiple=row_multiple,
        shard=shard,
        teachers=teachers,
    )


def exist(batch):
    """[VB] bool, the views of the sentences that are there."""
    return np.repeat(batch.mask, len(batch.order) // len(batch.mask))


def views_of(batch):
    """The tokens of each view that is there, in the order of the batch."""
    views = []
    for place in batch.order[exist(batch)]:
        row, slot = divmod(int(place), batch.cls_positions.shape[1])
        mine = batch.segments[row] == slot + 1
        np.testing.assert_array_equal(batch.positions[row, mine], np.arange(mine.sum()))
        views.append(batch.tokens[row, mine].tolist())
    return views
