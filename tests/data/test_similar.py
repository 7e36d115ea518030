"""Batches of similar sentences: what is grouped, what is kept apart, and every item once."""

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import end, start_cluster
from runs import largest_difference, saved_params, tiny_config
from tiny_models import WORDS, padded_vectors, tiny_model

from jtcse_jax.config import DataConfig, ModelConfig, ObjectiveConfig, OptimizerConfig
from jtcse_jax.data.batches import PackedBatches
from jtcse_jax.data.similar import near_duplicates, quantised, similar_order
from jtcse_jax.data.similar_batches import SimilarBatches
from jtcse_jax.data.sources import open_source
from jtcse_jax.data.tokens import tokenize
from jtcse_jax.errors import UserError
from jtcse_jax.store import exported
from jtcse_jax.training.similar_plan import ORDER, item_vectors
from jtcse_jax.training.start import Start
from jtcse_jax.training.trainer import train

RATE = OptimizerConfig(learning_rate=3e-5)  # small: AdamW turns rounding into a whole step


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


@pytest.mark.parametrize("count", [8, 61, 64, 101])
@pytest.mark.parametrize("size", [2, 5, 8])
@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99])
@pytest.mark.parametrize("apart", [0, 1, 7])
def test_each_epoch_visits_every_item_once(count, size, share, apart):
    order = np.random.default_rng(0).permutation(count)
    plan = SimilarBatches(order, count - apart)
    epochs = []
    for epoch in range(3):
        batches = [plan.items(step, size, share, (1, epoch)) for step in range(-(-count // size))]
        assert all(len(batch) == size for batch in batches[: count // size])
        epochs.append(np.concatenate(batches))
        np.testing.assert_array_equal(np.sort(epochs[-1]), np.arange(count))
    assert not (epochs[0] == epochs[1]).all() and not (epochs[1] == epochs[2]).all()


def test_a_batch_is_a_run_of_neighbours_and_a_share_of_the_others():
    count, apart, size = 10_007, 100, 40
    plan = SimilarBatches(np.arange(count), count - apart)
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
    plan = SimilarBatches(np.arange(100), 40)
    for step in range(10):
        items = plan.items(step, 10, 0.0, (0, 0))
        assert (items < 40).sum() == 4


@pytest.mark.parametrize("pairs", ["same", "adjacent"])
def test_every_process_and_step_has_the_batches_of_the_plan(tmp_path, pairs):
    lines = [" ".join(f"{number:03}") for number in range(300)]
    cache = tokenize(*text_and_tokenizer(tmp_path, lines), 16, tmp_path, progress=False)
    count = 300 - (pairs == "adjacent")
    plan = SimilarBatches.plan(np.random.default_rng(1).normal(size=(count, 8)))
    data = DataConfig(batch_size=16, max_len=16, pairs=pairs)
    fields = dict(seed=5, similar=plan, row_multiple=2)
    whole = PackedBatches(cache, data, **fields)
    halves = [PackedBatches(cache, data, **fields, shard=(index, 2)) for index in range(2)]
    for step in (70, 3, 18):
        epoch, number = divmod(step, whole.steps_per_epoch)
        batch, parts = whole[step], [half[step] for half in halves]
        planned = plan.items(number, 16, 0.25, (5, epoch))
        slots = batch.cls_positions.shape[1]
        for item, place in zip(planned, batch.order[::2], strict=False):
            row, slot = divmod(int(place), slots)
            tokens = batch.tokens[row, batch.segments[row] == slot + 1]
            np.testing.assert_array_equal(tokens, cache.sentence(item))
        np.testing.assert_array_equal(np.concatenate([part.tokens for part in parts]), batch.tokens)
        np.testing.assert_array_equal(parts[0].order, batch.order)


def text_and_tokenizer(folder, lines, name="text.txt"):
    (folder / name).write_text("\n".join(lines) + "\n")
    return open_source(str(folder / name)), tiny_model(1).tokenizer


@pytest.mark.parametrize("pairs", ["same", "adjacent", "file of pairs"])
def test_vectors_of_items_are_those_of_the_first_tower(tmp_path, pairs):
    random = np.random.default_rng(0)
    lines = [" ".join(random.choice(WORDS, random.integers(1, 12))) for _ in range(50)]
    first, second = lines, lines[::-1]
    rows, name = (lines, "text.txt")
    if pairs == "adjacent":
        first = lines[:-1]
    if pairs == "file of pairs":
        rows, name, pairs = map("\t".join, zip(first, second, strict=True)), "text.tsv", "same"
    cache = tokenize(*text_and_tokenizer(tmp_path, rows, name), 16, tmp_path, progress=False)
    twin, alone = tiny_model(2, pooling="mean"), tiny_model(1, pooling="mean")
    params = jax.tree.map(lambda leaf: leaf[:1], twin.params)
    expected = padded_vectors(dataclasses.replace(alone, params=params), first)
    start = Start(twin.bank.architecture, twin.tokenizer, "mean", 16, twin.params)
    found = item_vectors(cache, pairs, twin.bank, start)
    assert np.abs(found.astype(int) - quantised(expected)).max() <= 1


def test_a_saved_order_is_read_again_and_a_damaged_one_is_refused(tmp_path):
    plan = SimilarBatches(np.random.default_rng(0).permutation(20), 18)
    path = tmp_path / "order.npy"
    plan.save(path)
    again = SimilarBatches.load(path, 20)
    np.testing.assert_array_equal(again.order, plan.order)
    assert again.num_grouped == 18 and list(tmp_path.iterdir()) == [path]
    whole, stored = path.read_bytes(), np.load(path)
    twice = np.where(stored == stored[3], stored[4], stored)
    damaged = [whole[:-8], b"", None, np.append(0, plan.order), np.append(21, plan.order), twice]
    damaged += [stored.astype(float), stored[:-1], stored[:0], stored[:, None]]
    for other in damaged:
        path.unlink(missing_ok=True)
        if isinstance(other, bytes):
            path.write_bytes(other)
        elif other is not None:
            np.save(path, other)
        with pytest.raises(UserError, match=r"order\.npy.*--workdir"):
            SimilarBatches.load(path, 20)


def test_an_order_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"nowhere"):
        SimilarBatches(np.arange(4), 4).save(tmp_path / "nowhere" / "order.npy")


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """The folders of two small towers that read the same tokens."""
    folder = tmp_path_factory.mktemp("towers")
    exported.export(tiny_model(2, pooling="mean"), folder)
    return str(folder / "tower_0"), str(folder / "tower_1")


def run_from(towers, folder, **fields):
    """Trains the run of `tiny_config` from two towers, in batches of similar sentences."""
    folder.mkdir(exist_ok=True)
    fields = dict(optimizer=RATE, objective=ObjectiveConfig(name="tncse")) | fields
    config = tiny_config(folder, model=ModelConfig(towers=towers), **fields)
    data = dataclasses.replace(config.data, batches="similar")
    train(dataclasses.replace(config, data=data), devices=jax.devices()[:1])
    return Path(config.workdir)


@pytest.mark.slow
def test_a_resumed_run_has_the_batches_of_its_first_start(tmp_path, towers, capsys):
    whole = run_from(towers, tmp_path / "whole")
    assert "near-duplicates" in capsys.readouterr().out
    resumed = run_from(towers, tmp_path / "resumed", max_steps=4)
    planned = (resumed / ORDER).read_bytes()
    assert planned == (whole / ORDER).read_bytes()
    run_from(towers, tmp_path / "resumed")
    assert (resumed / ORDER).read_bytes() == planned
    assert largest_difference(saved_params(whole), saved_params(resumed)) == 0
    (resumed / ORDER).unlink()
    with pytest.raises(UserError, match=ORDER):
        run_from(towers, tmp_path / "resumed", max_steps=12)


@pytest.mark.slow
def test_an_order_is_planned_once_for_a_text_and_a_first_tower(tmp_path, towers, monkeypatch):
    planned = []
    plan = SimilarBatches.plan.__func__

    def noted(cls, vectors):
        planned.append(len(vectors))
        return plan(cls, vectors)

    monkeypatch.setattr(SimilarBatches, "plan", classmethod(noted))
    orders = {}
    for name, start, again in (
        ("first", towers, 1),
        ("other seed", (towers[0], towers[0]), 1),
        ("other start", towers[::-1], 2),
    ):
        workdir = run_from(start, tmp_path, workdir=str(tmp_path / name), max_steps=1, seed=again)
        assert planned == again * [160]
        orders[name] = (workdir / ORDER).read_bytes()
    assert orders["first"] == orders["other seed"] != orders["other start"]
    for copy in (tmp_path / "cache").glob("*/similar*.npy"):
        copy.write_bytes(b"damaged")
    run_from(towers, tmp_path, workdir=str(tmp_path / "damaged"), max_steps=1)
    assert len(planned) == 3 and (tmp_path / "damaged" / ORDER).read_bytes() == orders["first"]


@pytest.mark.slow
def test_two_processes_share_an_order(tmp_path, towers):
    whole = run_from(towers, tmp_path / "whole")
    many = tmp_path / "many"
    many.mkdir()
    data = f"data=__import__('dataclasses').replace(tiny_config(Path({str(many)!r})).data, "
    fields = (
        f"model=ModelConfig(towers={towers!r}), objective=ObjectiveConfig(name='tncse'), "
        f"optimizer=OptimizerConfig(learning_rate=3e-5), {data}batches='similar')"
    )
    ended = [end(process) for process in start_cluster(2, many, fields)]
    assert [status for status, _, _ in ended] == [0, 0], ended
    np.testing.assert_array_equal(np.load(many / "run" / ORDER), np.load(whole / ORDER))
    for line, other in zip(losses_of(whole), losses_of(many / "run"), strict=True):
        assert other == pytest.approx(line, rel=1e-3)


def losses_of(workdir):
    lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [[line[name] for name in ("loss", "nce", "ictm")] for line in lines if "loss" in line]
