"""Views with repeated words, read back from batches."""

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from token_batches import MAX_LEN, Sentences, make, views_of


def repeated_pairs(batch, cache):
    """(tokens of the sentence, tokens of its repeated view) of each item; checks both."""
    views = views_of(batch)
    pairs = list(zip(views[::2], views[1::2], strict=True))
    for first, second in pairs:
        # the tokens of a sentence differ from each other: [CLS] is 1000 and more, [SEP] the last
        assert first == cache.sentence(first[0] - 1000).tolist()
        assert [token for token, _ in itertools.groupby(second)] == first
        assert max(map(second.count, first)) <= 2
        assert second.count(first[0]) == second.count(first[-1]) == 1
    return pairs


def test_repeated_words_stand_beside_themselves_in_the_second_view_alone():
    cache = Sentences(60, lengths=np.full(60, 10))
    batches = make(cache, pairs="repeat", row_length=4 * MAX_LEN)
    longer = set()
    for _, batch in batches.iterate(0, 2 * batches.steps_per_epoch):
        longer |= {len(second) for _, second in repeated_pairs(batch, cache)}
    assert longer == {10, 11, 12}  # int(0.32 * 8) = 2 words at most


def test_the_repeated_view_of_a_sentence_at_the_limit_is_longer():
    cache = Sentences(60, lengths=np.full(60, MAX_LEN))
    batches = make(cache, pairs="repeat", row_length=None, slots=None)
    lengths = Counter()
    for _, batch in batches.iterate(0, 10 * batches.steps_per_epoch):
        lengths.update(len(second) for _, second in repeated_pairs(batch, cache))
    # int(0.32 * 14) = 4 words at most; equal views are those of no repeated word
    assert lengths.keys() == {MAX_LEN + more for more in range(5)}
    assert abs(lengths[MAX_LEN] - 600 / 5) < 5 * np.sqrt(600 * 0.2 * 0.8)


@settings(deadline=None, max_examples=50)
@given(
    lengths=st.lists(st.integers(3, MAX_LEN), min_size=8, max_size=40),
    rate=st.floats(0, 1),
    row_length=st.integers(MAX_LEN, 3 * MAX_LEN),
    slots=st.integers(1, 6),
    positions=st.none() | st.integers(MAX_LEN, 2 * MAX_LEN),
    micro_batch=st.sampled_from([None, 4]),
)
# Two sentences fit a row, but not two repeated views.
@example([MAX_LEN] * 8, 1.0, 2 * MAX_LEN, 2, None, None)
@example([MAX_LEN] * 8, 1.0, MAX_LEN, 2, None, None)
def test_repeated_views_lose_no_token_and_fit(
    lengths, rate, row_length, slots, positions, micro_batch
):
    cache = Sentences(len(lengths), lengths=lengths)
    fields = {"row_length": row_length, "slots": slots, "micro_batch": micro_batch}
    batches = make(cache, pairs="repeat", repeat_rate=rate, positions=positions, **fields)
    longest = min(row_length, positions or row_length)
    for _, batch in batches.iterate(0, 2 * batches.steps_per_epoch):
        assert batch.tokens.shape[-2] in {batches.usual_rows, batches.most_rows}
        parts = [batch]
        if micro_batch:
            parts = [type(batch)(*(leaf[number] for leaf in batch[:6])) for number in range(2)]
        for part in parts:
            for first, second in repeated_pairs(part, cache):
                most = max(2, int(rate * (len(first) - 2)))
                assert len(first) <= len(second) <= min(longest, len(first) + most)


@pytest.mark.parametrize(
    ("max_len", "positions", "row_length"),
    [(32, None, 64), (64, None, 88), (64, 512, 88), (64, 70, 72), (64, 64, 64)],
)
def test_rows_that_nobody_chose_hold_the_longest_repeated_view(max_len, positions, row_length):
    cache = Sentences(8, lengths=np.full(8, max_len))
    cache.max_len = max_len
    batches = make(cache, pairs="repeat", row_length=None, slots=None, positions=positions)
    assert batches.row_length == row_length
    lengths = [
        len(second)
        for _, batch in batches.iterate(0, 100)
        for _, second in repeated_pairs(batch, cache)
    ]
    longest = max_len + int(0.32 * (max_len - 2))
    assert max(lengths) == min(longest, positions or longest)


def test_repeated_words_differ_between_epochs():
    """All sentences are equal except for [CLS], so their order makes no difference."""
    cache = Sentences(16, lengths=np.full(16, MAX_LEN))
    batches = make(cache, pairs="repeat", batch_size=16)
    first, second = ([view[1:] for view in views_of(batches[step])] for step in (0, 1))
    assert first[::2] == second[::2]
    assert first[1::2] != second[1::2]
