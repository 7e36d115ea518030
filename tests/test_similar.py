"""Batches of similar sentences: what is grouped, what is kept apart, and every item once."""

import multiprocessing
import re

import numpy as np
import pytest

from jtcse_jax.config import Config, DataConfig
from jtcse_jax.data import similar_batches as module
from jtcse_jax.data.batches import PackedBatches
from jtcse_jax.data.similar import near_duplicates, quantised, similar_order
from jtcse_jax.data.similar_batches import (
    SimilarBatches,
    sentence_vectors,
    similar_batches,
    token_vectors,
)
from jtcse_jax.data.sources import open_source
from jtcse_jax.data.tokens import tokenize
from jtcse_jax.data.vocabulary import train_tokenizer
from jtcse_jax.errors import UserError
from jtcse_jax.sharding import make_mesh
from jtcse_jax.trainer import make_batches

TOPICS, SENTENCES = 12, 960
FORK = multiprocessing.get_context("fork")


def write_topics(path, count=SENTENCES):
    """Sentence i is of topic i % 12: five of the topic's 15 words, four that all topics share."""
    random = np.random.default_rng(0)
    lines = []
    for number in range(count):
        words = [f"t{number % TOPICS:02}w{word:02}" for word in random.choice(15, 5, replace=False)]
        words += [f"all{word}" for word in random.choice(8, 4)]
        lines.append(" ".join(random.permutation(words)))
    path.write_text("\n".join(lines) + "\n")
    return open_source(str(path))


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A source and its tokenizer."""
    source = write_topics(tmp_path_factory.mktemp("topics") / "topics.txt")
    return source, train_tokenizer(source, 400, lowercase=True)


@pytest.fixture
def cache(text, tmp_path):
    return tokenize(*text, 32, tmp_path / "cache", progress=False)


def mean_cosine(vectors, batches):
    """The mean cosine of two different members of a batch, over all batches."""
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = [vectors[batch] @ vectors[batch].T for batch in batches]
    return np.mean([(c.sum() - len(c)) / (len(c) * (len(c) - 1)) for c in cosines])


def batches_of(order, size):
    return order[: len(order) // size * size].reshape(-1, size)


@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 250, 1000])
def test_order_holds_every_item_once(count):
    vectors = np.random.default_rng(0).normal(size=(count, 16))
    order = similar_order(vectors, 8)
    assert order.dtype == np.int64
    np.testing.assert_array_equal(np.sort(order), np.arange(count))
    # Vectors that are all zero, or all equal, give an order too.
    for same in (np.zeros((count, 4)), np.ones((count, 4))):
        np.testing.assert_array_equal(np.sort(similar_order(same, 8)), np.arange(count))


def test_neighbours_are_similar_at_any_size_and_start():
    random = np.random.default_rng(0)
    centres = random.normal(size=(50, 32))
    vectors = centres[random.integers(50, size=3200)] + 0.5 * random.normal(size=(3200, 32))
    order = similar_order(vectors, 8)
    by_chance = mean_cosine(vectors, batches_of(random.permutation(3200), 16))
    assert abs(by_chance) < 0.03
    for size, least in ((8, 0.64), (16, 0.61), (32, 0.52), (64, 0.41)):
        for turn in (0, size // 2):
            assert mean_cosine(vectors, batches_of(np.roll(order, turn), size)) > least


def test_order_is_that_of_the_directions():
    """Neither lengths nor how the vectors lie in memory change it."""
    vectors = np.random.default_rng(1).normal(size=(500, 24))
    order = similar_order(vectors, 4)
    for same in (1000 * vectors, np.asfortranarray(vectors), quantised(vectors)):
        np.testing.assert_array_equal(similar_order(same, 4), order)


def test_quantised_vectors_have_length_127_and_the_same_direction():
    vectors = np.random.default_rng(0).normal(size=(100, 128)) * 10.0 ** np.arange(-50, 50)[:, None]
    vectors[7] = 0
    found = quantised(vectors)
    assert found.dtype == np.int8 and not found[7].any()
    norms = np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-300)
    np.testing.assert_allclose(found, 127 * vectors / norms, atol=0.5001)


def test_all_but_one_of_near_duplicates_are_found():
    random = np.random.default_rng(0)
    vectors = random.normal(size=(300, 128))
    # 5 copies of one, with little noise, and 2 exact ones of another.
    copies = [10, 20, 30, 40, 299]
    vectors[copies] = vectors[0] + 0.1 * random.normal(size=(5, 128))
    vectors[[111, 112]] = vectors[110]
    vectors[200] = vectors[201] + 0.8 * random.normal(size=128)  # similar, and no duplicate
    order = similar_order(vectors, 8)
    apart = order[near_duplicates(vectors, order)]
    assert len(apart) == 7
    assert len({0, *copies} - set(apart)) == 1 and len({110, 111, 112} - set(apart)) == 1


def test_near_duplicates_are_looked_for_in_64_positions():
    vectors = np.random.default_rng(0).normal(size=(400, 128))
    for distance in (1, 2, 63, 64):
        for first in (0, 63, 64, 100, 319):
            changed = vectors.copy()
            changed[first + distance] = changed[first]
            found = near_duplicates(changed, np.arange(400))
            assert np.flatnonzero(found).tolist() == [first + distance]


@pytest.mark.parametrize("count", [8, 61, 64, 1000])
@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("apart", [0, 1, 7])
def test_each_epoch_visits_every_item_once(count, size, share, apart):
    order = np.random.default_rng(0).permutation(count)
    plan = SimilarBatches("order.bin", order, count - apart, 0.0)
    epochs = []
    for epoch in range(3):
        batches = [plan.items(step, size, share, (1, epoch)) for step in range(-(-count // size))]
        assert all(len(batch) == size for batch in batches[: count // size])
        epochs.append(np.concatenate(batches))
        np.testing.assert_array_equal(np.sort(epochs[-1]), np.arange(count))
    assert not (epochs[0] == epochs[1]).all() and not (epochs[1] == epochs[2]).all()


def test_a_batch_is_a_run_of_neighbours_and_a_share_of_the_others():
    count, apart, size = 10_007, 100, 40
    plan = SimilarBatches("order.bin", np.arange(count), count - apart, 0.0)
    starts = []
    for step in range(count // size):
        items = plan.items(step, size, 0.25, (3, 0))
        runs = (np.diff(items[:30]) % (count - apart) == 1).all()
        assert runs and (items[:30] < count - apart).all()
        starts.append(items[0])
        # Random ones are from anywhere.
        assert np.ptp(items[30:]) > count / 8
    assert (np.diff(starts) > 0).mean() < 0.6, "the blocks come in their order"
    # Near-duplicates are spread over the epoch.
    seen = [
        (plan.items(step, size, 0.25, (3, 0)) >= count - apart).sum() for step in range(125, 250)
    ]
    assert 25 < sum(seen) < 75 and max(seen) < 5
    # Every item is grouped in some epoch and random in another.
    grouped = [epoch for epoch in range(12) if 77 in grouped_items(plan, size, epoch)]
    assert 0 < len(grouped) < 12


def grouped_items(plan, size, epoch):
    steps = range(len(plan.order) // size)
    return np.concatenate([plan.items(step, size, 0.25, (3, epoch))[:30] for step in steps])


def test_more_near_duplicates_than_the_share_leave_every_batch_a_group():
    plan = SimilarBatches("order.bin", np.arange(100), 40, 0.0)
    for step in range(10):
        items = plan.items(step, 10, 0.0, (0, 0))
        assert (items < 40).sum() == 4


def test_order_with_an_item_that_is_not_there_is_damaged():
    for wrong in (-1, 20):
        order = np.arange(20)
        order[5] = wrong
        plan = SimilarBatches("order.bin", order, 20, 0.0)
        with pytest.raises(UserError, match=r"order\.bin"):
            for step in range(2):
                plan.items(step, 10, 0.0, (0, 0))


def test_batches_of_a_text_hold_few_topics(cache):
    similar = PackedBatches(cache, batch_size=16, seed=0, batches="similar", random_share=0.0)
    random = PackedBatches(cache, batch_size=16, seed=0)
    of_one_topic = []
    for batches in (similar, random):
        shares = []
        for step in range(batches.steps_per_epoch):
            topics = topics_of(batches[step], cache)
            assert len(topics) == 16
            shares.append((topics[:, None] == topics).mean())
        of_one_topic.append(np.mean(shares))
    assert of_one_topic[1] < 0.18 and of_one_topic[0] > 4 * of_one_topic[1]


def topics_of(batch, cache):
    """The topic of each item, from the tokens of its first view."""
    slots = batch.cls_positions.shape[1]
    texts = {cache.sentence(i).tobytes(): i for i in range(len(cache))}
    topics = []
    for place in batch.order[::2]:
        row, slot = divmod(int(place), slots)
        topics.append(texts[batch.tokens[row, batch.segments[row] == slot + 1].tobytes()] % TOPICS)
    return np.array(topics)


def test_topics_are_told_apart_by_what_comes_together(cache):
    """Two sentences of one topic need no rare word in common."""
    words, topics = token_vectors(cache)
    number = np.arange(len(cache)) % TOPICS
    differ = []
    for tokens in (words, topics):
        vectors = sentence_vectors(cache, len(cache), tokens).astype(float)
        within = mean_cosine(vectors, [np.flatnonzero(number == topic) for topic in range(TOPICS)])
        differ.append(within - mean_cosine(vectors, [np.arange(len(cache))]))
    assert differ[1] > 2 * differ[0] > 0


@pytest.mark.parametrize("pairs", ["same", "adjacent"])
def test_every_process_and_step_has_the_same_batches(cache, pairs):
    fields = dict(batch_size=16, seed=5, batches="similar", pairs=pairs, row_multiple=2)
    whole = PackedBatches(cache, **fields)
    halves = [PackedBatches(cache, **fields, shard=(index, 2)) for index in range(2)]
    assert len(whole.similar.order) == SENTENCES - (pairs == "adjacent")
    for step in (70, 3, 59):
        batch, parts = whole[step], [half[step] for half in halves]
        np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), batch.tokens)
        np.testing.assert_array_equal(parts[0].order, batch.order)
        np.testing.assert_array_equal(PackedBatches(cache, **fields)[step].tokens, batch.tokens)


def test_pairs_are_grouped_by_their_first_sentences(text, tmp_path):
    lines = open(text[0].spec).read().splitlines()
    noise = np.random.default_rng(3).permutation(lines)
    (tmp_path / "pairs.tsv").write_text(
        "".join(f"{first}\t{second}\n" for first, second in zip(lines, noise, strict=True))
    )
    pairs = tokenize(open_source(str(tmp_path / "pairs.tsv")), text[1], 32, tmp_path / "cache")
    assert pairs.views == 2
    plan = similar_batches(pairs, SENTENCES)
    topics = plan.order[: plan.num_grouped] % TOPICS
    assert (topics[1:] == topics[:-1]).mean() > 0.6


def test_the_order_is_kept_and_made_again_when_damaged(cache, monkeypatch):
    first = similar_batches(cache, len(cache))
    expected = first.path.read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(module, "_plan", None)
        again = similar_batches(cache, len(cache))
    np.testing.assert_array_equal(again.order, first.order)
    assert again.num_grouped == first.num_grouped
    for damaged in (expected[:-8], b"", bytes(8) + expected[8:], b"\xff" * 8 + expected[8:]):
        first.path.unlink()
        first.path.write_bytes(damaged)
        similar_batches(cache, len(cache))
        assert first.path.read_bytes() == expected
    assert {path.suffix for path in cache.folder.glob("*similar*")} == {".bin", ".lock"}


def test_an_order_that_cannot_be_written_is_an_error(cache, monkeypatch):
    def full(*arguments):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(module, "_plan", full)
    with pytest.raises(UserError, match=r"similar.*No space left"):
        similar_batches(cache, len(cache))


def test_processes_that_start_at_once_plan_once(cache, tmp_path, monkeypatch):
    plan = module._plan

    def noted(*arguments):
        with open(tmp_path / "planned", "a") as file:
            file.write("x")
        plan(*arguments)

    monkeypatch.setattr(module, "_plan", noted)
    processes = [
        FORK.Process(target=similar_batches, args=(cache, len(cache)), daemon=True)
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert (tmp_path / "planned").read_text() == "x"


def test_a_run_prints_its_order(text, tmp_path, capsys):
    source, tokenizer = text
    data = DataConfig(source=source.spec, batches="similar", cache_dir=str(tmp_path), max_len=32)
    mesh = make_mesh(1, 1, devices=None)
    batches = make_batches(Config(data=data), source, [tokenizer], mesh, positions=512)
    assert batches.similar is not None
    assert "similar" in (printed := capsys.readouterr().out) and "25% random" in printed
    assert re.search(r" \d+ near-duplicates", printed)
