"""Several positives of an anchor: every pair once, and never two of an anchor in a batch."""

import numpy as np
import pytest
from token_batches import Sentences, make, views_of

from jtcse_jax.data.similar_batches import SimilarBatches

RECORDS = 30


def items_of(batch, per_item):
    """The cached sentences of each item; of micro-batches, one after the other."""
    parts = [batch]
    if batch.has_micro_batches:
        parts = [
            type(batch)(*(leaf[number] for leaf in batch[:6])) for number in range(len(batch.mask))
        ]
    views = [tokens[0] - 1000 for part in parts for tokens in views_of(part)]
    return [tuple(views[start : start + per_item]) for start in range(0, len(views), per_item)]


def slowly(columns, positives):
    """Each record's pairs with its hard negatives, by the numbers of its sentences."""
    pairs = set()
    for record in range(RECORDS):
        anchor, *others = range(record * columns, (record + 1) * columns)
        for positive in others[:positives]:
            pairs.add((anchor, positive, *others[positives:]))
    return pairs


@pytest.mark.parametrize("fields", [{}, {"micro_batch": 4}, {"batches": "similar"}], ids=str)
@pytest.mark.parametrize(("columns", "positives"), [(3, 2), (5, 3), (4, 1)])
def test_epochs_take_every_pair_once_and_batches_no_anchor_twice(columns, positives, fields):
    cache, similar = Sentences(columns * RECORDS, views=columns), None
    if fields.get("batches"):
        similar = SimilarBatches.plan(np.random.default_rng(0).normal(size=(RECORDS, 4)))
    batches = make(cache, positives=positives, similar=similar, **fields)
    per_item = columns - positives + 1
    assert (batches.num_items, batches.views_per_item) == (RECORDS, per_item)
    seen = []
    for epoch in range(positives):
        chosen = []
        for step in range(batches.steps_per_epoch):
            items = items_of(batches[epoch * batches.steps_per_epoch + step], per_item)
            records = [sentence // columns for item in items for sentence in set(item)]
            # No sentence of a record is in the item of another: each record has one item.
            assert sorted(records) == sorted(per_item * [item[0] // columns for item in items])
            assert len(set(records)) == len(items)
            chosen += items
        taken = np.bincount([positive % columns for _, positive, *_ in chosen])
        assert (taken[1:] == RECORDS / positives).all()  # each column as often
        seen += chosen
    assert len(seen) == positives * RECORDS and set(seen) == slowly(columns, positives)


def test_a_teacher_reads_the_same_positives():
    mine, others = Sentences(90, views=3), Sentences(90, views=3, lengths=np.full(90, 5))
    batches = make(mine, positives=2, teachers=[others])
    for _, batch in batches.iterate(0, 2 * batches.steps_per_epoch):
        assert items_of(batch, 2) == items_of(batch.teacher[0], 2)
