"""Packing against a plain loop, and the invariants that the model relies on."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jtcse_jax.data.packing import fill, most_rows, pack, usual_row_length, usual_slots

PAD = 99


def best_fit_by_loop(lengths, row_length, slots):
    """[(row, start, slot)] of each sentence: every row is looked at for every sentence."""
    rows = []  # dicts of room, sentences in the row, time of the last change
    where = [None] * len(lengths)
    for time, i in enumerate(sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))):
        fits = [r for r in rows if r["room"] >= lengths[i] and r["used"] < slots]
        if fits:
            row = min(fits, key=lambda r: (r["room"], -r["used"], -r["time"]))
        else:
            row = {"index": len(rows), "room": row_length, "used": 0}
            rows.append(row)
        where[i] = (row["index"], row_length - row["room"], row["used"])
        row["room"] -= lengths[i]
        row["used"] += 1
        row["time"] = time
    return where, len(rows)


@st.composite
def problems(draw):
    row_length = draw(st.integers(6, 60))
    longest = draw(st.integers(1, row_length))
    lengths = draw(st.lists(st.integers(1, longest), max_size=120))
    return lengths, row_length, draw(st.integers(1, 9))


@settings(deadline=None)
@given(problems())
def test_equals_the_plain_loop(problem):
    packing = pack(np.array(problem[0], np.uint16), *problem[1:])
    where, num_rows = best_fit_by_loop(*problem)
    found = list(zip(packing.rows, packing.starts, packing.slot_of, strict=True))
    assert (found, packing.num_rows) == (where, num_rows)


@settings(deadline=None)
@given(problems())
def test_every_sentence_lies_alone_in_its_place(problem):
    lengths, row_length, slots = problem
    packing = pack(np.array(lengths), row_length, slots)
    owner = np.full((packing.num_rows, row_length), -1)
    for i, (row, start) in enumerate(zip(packing.rows, packing.starts, strict=True)):
        assert 0 <= start and start + lengths[i] <= row_length
        assert (owner[row, start : start + lengths[i]] == -1).all()
        owner[row, start : start + lengths[i]] = i
    assert (packing.slot_of < slots).all()
    assert len(set(packing.order.tolist())) == len(lengths)
    assert np.array_equal(packing.order, packing.rows * slots + packing.slot_of)
    assert set(packing.rows.tolist()) == set(range(packing.num_rows))


@settings(deadline=None)
@given(problems())
def test_no_batch_needs_more_than_the_most_rows(problem):
    lengths, row_length, slots = problem
    longest = max(lengths, default=1)
    assert pack(np.array(lengths), *problem[1:]).num_rows <= most_rows(
        len(lengths), longest, row_length, slots
    )
    # and of the longest alone all of them are needed
    alike = pack(np.full(len(lengths), longest), row_length, slots)
    assert alike.num_rows == most_rows(len(lengths), longest, row_length, slots)


def test_long_rows_take_no_memory_of_their_own():
    lengths = np.random.default_rng(0).integers(1, 8193, 100)
    tracemalloc.start()
    pack(lengths, 8192, 2048)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2**20


def test_views_of_usual_sentences_fill_their_rows():
    rng = np.random.default_rng(0)
    lengths = np.repeat(np.clip(rng.lognormal(3.3, 0.6, 64), 5, 64).astype(int), 2)
    row_length = usual_row_length(64)
    packing = pack(lengths, row_length, usual_slots(row_length))
    assert packing.num_rows <= 1.05 * lengths.sum() / row_length


def test_what_nobody_chooses_holds_the_longest_sentence():
    assert [usual_row_length(longest) for longest in (3, 64, 65, 512)] == [64, 64, 72, 512]
    assert [usual_slots(row_length) for row_length in (5, 64, 128)] == [1, 6, 12]


def fill_by_loop(packing, sentences, num_rows, row_length, slots):
    tokens = np.full((num_rows, row_length), PAD)
    positions, segments = np.zeros((2, num_rows, row_length), int)
    cls_positions = np.zeros((num_rows, slots), int)
    for i, sentence in enumerate(sentences):
        row, start, slot = packing.rows[i], packing.starts[i], packing.slot_of[i]
        cls_positions[row, slot] = start
        for position, token in enumerate(sentence):
            tokens[row, start + position] = token
            positions[row, start + position] = position
            segments[row, start + position] = slot + 1
    return tokens, positions, segments, cls_positions


@pytest.fixture
def packed():
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 13, 30)
    sentences = [rng.integers(100, 1000, length) for length in lengths]
    return pack(lengths, 24, 6), sentences


def test_filled_rows_equal_the_plain_loop(packed):
    packing, sentences = packed
    num_rows = packing.num_rows + 3
    filled = fill(packing, sentences.__getitem__, num_rows, PAD)
    for array, expected in zip(
        filled, fill_by_loop(packing, sentences, num_rows, 24, 6), strict=True
    ):
        assert array.dtype == np.int32
        np.testing.assert_array_equal(array, expected)


def test_a_shard_fills_its_rows_and_reads_no_other_sentence(packed):
    packing, sentences = packed
    num_rows = packing.num_rows + 2
    whole = fill(packing, sentences.__getitem__, num_rows, PAD)
    for rows in (range(0, 2), range(2, num_rows), range(1, 4), range(num_rows - 1, num_rows)):
        read = []
        part = fill(
            packing,
            lambda i, read=read: read.append(i) or sentences[i],
            num_rows,
            PAD,
            rows,
        )
        for array, expected in zip(part, whole, strict=True):
            np.testing.assert_array_equal(array, expected[list(rows)])
        assert sorted(read) == [i for i in range(30) if packing.rows[i] in rows]


def test_no_rows_asked_gives_no_rows(packed):
    packing, sentences = packed
    tokens, *_ = fill(packing, sentences.__getitem__, packing.num_rows, PAD, range(0))
    assert tokens.shape == (0, 24)


@pytest.mark.parametrize(
    ("lengths", "slots", "problem"),
    [
        ([3, 0], 4, "sentence 1 has no tokens"),
        ([3, 11], 4, "sentence 1 has 11 tokens"),
        ([3, 3], 0, "0 slots holds no sentence"),
    ],
)
def test_what_fits_no_row_is_refused(lengths, slots, problem):
    with pytest.raises(ValueError, match=problem):
        pack(np.array(lengths), 10, slots)


def test_a_grid_too_small_and_a_sentence_of_another_length_are_refused(packed):
    packing, sentences = packed
    with pytest.raises(ValueError, match="does not fit a grid"):
        fill(packing, sentences.__getitem__, packing.num_rows - 1, PAD)
    with pytest.raises(ValueError, match="tokens came"):
        fill(packing, lambda i: sentences[i][1:], packing.num_rows, PAD)
