"""Batches read back sentence by sentence: nothing lost, nothing moved, the same on any shards."""

import numpy as np
import pytest
from token_batches import MAX_LEN, Sentences, exist, make, views_of

from jtcse_jax.data.packing import pack
from jtcse_jax.errors import UserError


def read_back(batch, cache):
    """The cached sentence of each view, None where masked; checks all that a row says of it."""
    slots = batch.cls_positions.shape[1]
    views = []
    for place, exists in zip(batch.order, exist(batch), strict=True):
        row, slot = divmod(int(place), slots)
        mine = batch.segments[row] == slot + 1
        if not exists:
            views.append(None)
            continue
        tokens = batch.tokens[row, mine]
        index = tokens[0] - 1000
        np.testing.assert_array_equal(tokens, cache.sentence(index))
        np.testing.assert_array_equal(batch.positions[row, mine], np.arange(len(tokens)))
        assert batch.cls_positions[row, slot] == mine.argmax()
        views.append(int(index))
    filler = batch.segments == 0
    assert (batch.tokens[filler] == cache.pad_id).all() and not batch.positions[filler].any()
    assert (~filler).sum() == sum(cache.lengths[view] for view in views if view is not None)
    return views


def assert_same(batch, other):
    for name, array, expected in zip(batch._fields, batch, other, strict=True):
        np.testing.assert_array_equal(array, expected, err_msg=name)


@pytest.mark.parametrize(
    ("views", "pairs", "expected"),
    [
        (1, "same", [(i, i) for i in range(61)]),
        (1, "adjacent", [(i, i + 1) for i in range(60)]),
        (2, "same", [(2 * i, 2 * i + 1) for i in range(30)]),
        (4, "same", [(4 * i, 4 * i + 1, 4 * i + 2, 4 * i + 3) for i in range(15)]),
    ],
)
def test_each_epoch_visits_every_item_once_in_its_own_order(views, pairs, expected):
    cache = Sentences(61 if views == 1 else 60, views)
    batches = make(cache, pairs=pairs)
    items, per_item = len(expected), len(expected[0])
    assert (batches.num_items, batches.views_per_item) == (items, per_item)
    assert batches.steps_per_epoch == -(-items // 8)

    epochs = []
    for epoch in range(3):
        seen = []
        for step in range(batches.steps_per_epoch):
            found = read_back(batches[epoch * batches.steps_per_epoch + step], cache)
            items_found = zip(*(found[view::per_item] for view in range(per_item)), strict=True)
            seen += [item for item in items_found if item != (None,) * per_item]
        assert sorted(seen) == expected
        epochs.append(seen)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0] and epochs[0] != expected


def test_a_last_partial_batch_is_masked_and_keeps_its_shape():
    cache = Sentences(20)
    batches = make(cache)
    last = batches[2]
    assert last.mask.tolist() == [True] * 4 + [False] * 4
    assert last.order.shape == (16,) and not last.order[8:].any()
    assert batches[0].mask.all() and batches[3].mask.all()


@pytest.mark.parametrize("steps", [range(3), range(2, 3)])
def test_micro_batches_hold_the_batch_in_its_order(steps):
    """Each packed for itself, in rows of one count; of a last, partial batch some are empty."""
    cache = Sentences(61, lengths=[*range(3, 17)] * 4 + [3] * 5)
    whole = make(cache, batch_size=24)
    micro = make(cache, batch_size=24, micro_batch=8, row_multiple=2)
    for step in steps:
        batch = micro[step]
        assert batch.has_micro_batches and not whole[step].has_micro_batches
        assert batch.tokens.shape[:2] in {(3, micro.usual_rows), (3, micro.most_rows)}
        parts = [
            read_back(type(batch)(*(leaf[number] for leaf in batch[:6])), cache)
            for number in range(3)
        ]
        assert sum(parts, []) == read_back(whole[step], cache)
    assert micro.most_rows == 8
    halves = [
        make(cache, batch_size=24, micro_batch=8, row_multiple=2, shard=(index, 2))[step].tokens
        for index in range(2)
    ]
    np.testing.assert_array_equal(np.concatenate(halves, axis=1), batch.tokens)


@pytest.mark.parametrize("pairs", ["same", "repeat"])
def test_a_batch_is_a_function_of_seed_and_step_alone(pairs):
    cache = Sentences(50)
    one, other = make(cache, pairs=pairs), make(cache, pairs=pairs)
    forward = [one[step] for step in range(12)]
    for step in (11, 3, 7, 0):
        assert_same(other[step], forward[step])
    assert views_of(make(cache, pairs=pairs, seed=43)[0])[::2] != views_of(forward[0])[::2]


@pytest.mark.parametrize("pairs", ["same", "repeat"])
@pytest.mark.parametrize(("start", "stop"), [(0, 14), (5, 9), (13, 14), (4, 4)])
def test_iterating_from_any_step_gives_the_batches_of_those_steps(start, stop, pairs):
    batches = make(Sentences(50), pairs=pairs)
    found = list(batches.iterate(start, stop))
    assert [step for step, _ in found] == list(range(start, stop))
    for step, batch in found:
        assert_same(batch, batches[step])


def test_an_iteration_may_be_left_early():
    batches = make(Sentences(50))
    for step, _ in batches.iterate(0, 10**9):
        if step == 3:
            break
    assert step == 3


@pytest.mark.parametrize("pairs", ["same", "repeat"])
def test_shards_hold_the_rows_of_the_whole_batch(pairs):
    cache = Sentences(50)
    whole = make(cache, pairs=pairs, row_multiple=4)
    for count in (2, 4):
        shards = [make(cache, pairs=pairs, row_multiple=4, shard=(i, count)) for i in range(count)]
        for step in range(9):
            parts = [shard[step] for shard in shards]
            rows = [
                np.concatenate(arrays) for arrays in zip(*(part[:4] for part in parts), strict=True)
            ]
            for part in parts:
                assert_same(whole[step], type(part)(*rows, part.order, part.mask))
        assert {shard.usual_rows for shard in shards} == {whole.usual_rows}


def test_a_batch_too_long_for_the_usual_rows_takes_the_most():
    short = Sentences(400, lengths=np.full(400, 4))
    lengths = short.lengths.copy()
    for step in (3, 20):  # the order of the items does not depend on their lengths
        lengths[read_back(make(short)[step], short)] = MAX_LEN
    cache = Sentences(400, lengths=lengths)
    batches = make(cache, slots=8, row_multiple=2)
    assert (batches.usual_rows, batches.most_rows) == (2, 8)
    for step, batch in batches.iterate(0, 50):
        assert len(batch.tokens) == (8 if step in (3, 20) else 2)
        assert None not in read_back(batch, cache)


def test_rows_that_nobody_chose_hold_the_longest_sentence_of_all_caches():
    cache, teacher = Sentences(50), Sentences(50)
    teacher.max_len = 80
    for teachers, row_length, slots in (([], 64, 6), ([teacher], 80, 8)):
        batches = make(cache, row_length=None, slots=None, teachers=teachers)
        assert batches.row_length == row_length
        assert batches[0].tokens.shape[1:] == (row_length,)
        assert batches[0].cls_positions.shape[1:] == (slots,)


def test_row_counts_are_rounded_up_to_the_multiple():
    batches = make(Sentences(80, lengths=np.full(80, MAX_LEN)), row_multiple=3)
    assert batches.usual_rows == batches.most_rows == len(batches[0].tokens) == 9


def test_usual_rows_cost_least_over_the_first_batches():
    lengths = np.random.default_rng(0).integers(3, MAX_LEN + 1, 4000)
    cache = Sentences(4000, lengths=lengths)
    batches = make(cache, batch_size=32)
    needed = []
    for step in range(125):
        views = read_back(batches[step], cache)
        needed.append(pack(cache.lengths[views], 2 * MAX_LEN, 6).num_rows)

    def work(usual):
        return sum(usual if rows <= usual else 32 for rows in needed)

    assert work(batches.usual_rows) == min(map(work, range(1, 33)))


@pytest.mark.parametrize(("size", "pairs", "items"), [(51, "same", 50), (50, "adjacent", 49)])
def test_text_of_less_than_a_batch_is_refused(size, pairs, items):
    problem = f"some.txt has {items} sentences.*data.batch_size from {size}"
    with pytest.raises(UserError, match=problem):
        make(Sentences(50), batch_size=size, pairs=pairs)


def test_no_more_positives_than_columns():
    for views, positives in ((1, 2), (3, 3)):
        problem = f"data.positives = {positives}: some.txt has {views} sentences a line"
        with pytest.raises(UserError, match=problem):
            make(Sentences(60, views=views), positives=positives)


def test_adjacent_pairs_of_a_source_of_pairs_are_refused():
    with pytest.raises(UserError, match="some.txt holds pairs"):
        make(Sentences(50, views=2), pairs="adjacent")


def test_a_shard_must_divide_the_rows_and_a_step_must_exist():
    for shard in ((0, 3), (2, 2), (-1, 2)):
        with pytest.raises(ValueError, match="shard"):
            make(Sentences(50), row_multiple=4, shard=shard)
    with pytest.raises(IndexError):
        make(Sentences(50))[-1]
    with pytest.raises(IndexError):
        next(make(Sentences(50)).iterate(3, 2))


@pytest.mark.parametrize("views", [1, 2])
def test_without_pairs_each_sentence_stands_once(views):
    cache = Sentences(60, views)
    batches = make(cache, pairs="none", row_length=MAX_LEN)
    assert batches.num_items == 60
    seen = []
    for _, batch in batches.iterate(0, batches.steps_per_epoch):
        assert len(batch.order) == 8
        seen += [view for view in read_back(batch, cache) if view is not None]
    assert sorted(seen) == list(range(60))


@pytest.mark.parametrize(
    ("views", "pairs"), [(1, "same"), (1, "adjacent"), (1, "repeat"), (2, "same"), (4, "same")]
)
def test_a_teacher_reads_the_same_sentences_in_its_own_tokens(views, pairs):
    cache = Sentences(40, views)
    other = Sentences(40, views, lengths=np.random.default_rng(7).integers(3, MAX_LEN + 1, 40))
    batches = make(cache, pairs=pairs, teachers=[other], row_multiple=2)
    plain = make(cache, pairs=pairs, row_multiple=2)
    for step, batch in batches.iterate(0, batches.steps_per_epoch):
        assert_same(batch._replace(teacher=()), plain[step])
        (taught,) = batch.teacher
        np.testing.assert_array_equal(taught.mask, batch.mask)
        student = [int(batch.tokens[divmod_cls(batch, place)]) for place in batch.order]
        teacher = [int(taught.tokens[divmod_cls(taught, place)]) for place in taught.order]
        exists = exist(batch)
        assert [a for a, m in zip(student, exists, strict=True) if m] == [
            a for a, m in zip(teacher, exists, strict=True) if m
        ]
        # each distinct sentence lies there once, as the teacher's tokens have it
        distinct = {token - 1000 for token in teacher[: exists.sum()]}
        assert (taught.segments > 0).sum() == sum(int(other.lengths[i]) for i in distinct)


def divmod_cls(batch, place):
    """The row and the position of a view's first token."""
    row, slot = divmod(int(place), batch.cls_positions.shape[1])
    return row, batch.cls_positions[row, slot]


def test_a_batch_and_its_teacher_grow_together():
    cache = Sentences(400, lengths=np.full(400, 4))
    lengths = cache.lengths.copy()
    long_ones = read_back(make(cache)[5], cache)[::2]
    lengths[long_ones] = MAX_LEN
    batches = make(cache, slots=8, teachers=[Sentences(400, lengths=lengths)])
    shapes = {
        (len(batch.tokens), len(batch.teacher[0].tokens)) for _, batch in batches.iterate(0, 50)
    }
    assert shapes == {(2, 1), (8, 8)}
