"""The most similar pairs, against a slow loop and against sentence-transformers."""

import tracemalloc

import numpy as np
import pytest

from jtcse_jax.encoding import exact_index, pairs
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.encoding.exact_index import UnitVectors, unit
from jtcse_jax.encoding.index import make_index
from jtcse_jax.encoding.pairs import best_pairs, merged, near_pairs
from jtcse_jax.errors import UserError


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(pairs, "ROWS", 7)
    monkeypatch.setattr(pairs, "COLUMNS", 16)
    monkeypatch.setattr(pairs, "SLAB", 50)


def some_vectors(count):
    return np.random.default_rng(count).normal(0.2, 1, (count, 6)).astype(np.float32)


def slowly(vectors, top, threshold):
    """(cosine, first, second), best first."""
    found = []
    for first, a in enumerate(vectors):
        for second, b in enumerate(vectors[:first]):
            cosine = float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))
            if threshold is None or cosine >= threshold:
                found.append((cosine, second, first))
    return sorted(found, key=lambda pair: (-pair[0], *pair[1:]))[:top]


@pytest.mark.parametrize("count", [1, 2, 7, 50])
@pytest.mark.parametrize(("top", "threshold"), [(1, None), (9, None), (2000, None), (9, 0.8)])
def test_pairs_are_those_of_a_slow_loop(small_tiles, count, top, threshold):
    vectors = some_vectors(count)
    found = best_pairs(unit(vectors), top, threshold)
    expected = slowly(vectors, top, threshold)
    assert found[["first", "second"]].tolist() == [pair[1:] for pair in expected]
    np.testing.assert_allclose(found["cosine"], [pair[0] for pair in expected], atol=1e-6)


def test_parts_make_the_whole(small_tiles):
    vectors, rows = unit(some_vectors(50)), [range(0, 20), range(20, 21), range(21, 50)]
    counted = []
    parts = [best_pairs(vectors, 30, rows=part, done=counted.append) for part in rows]
    assert [len(part) for part in parts] == [30, 29, 30] and sum(counted) == 50
    assert merged(parts, 30).tolist() == best_pairs(vectors, 30).tolist()
    assert len(best_pairs(vectors, 30, rows=range(5, 5))) == 0


def test_equal_vectors_are_pairs_in_their_order(small_tiles):
    vectors = np.ones((20, 4), np.float32) / 2
    found = best_pairs(vectors, 400)
    every = [(i, j) for i in range(20) for j in range(i + 1, 20)]
    assert found[["first", "second"]].tolist() == every
    assert len(best_pairs(vectors, 5)) == 5


def test_pairs_are_those_of_sentence_transformers(small_tiles):
    util = pytest.importorskip("sentence_transformers.util", reason="is not installed")
    import torch

    vectors = some_vectors(60)
    theirs = util.paraphrase_mining_embeddings(torch.from_numpy(vectors), max_pairs=40)
    ours = best_pairs(unit(vectors), 40)
    assert ours[["first", "second"]].tolist() == [(first, second) for _, first, second in theirs]
    np.testing.assert_allclose(ours["cosine"], [score for score, *_ in theirs], atol=1e-6)


def test_memory_is_that_of_a_tile(monkeypatch):
    monkeypatch.setattr(pairs, "ROWS", 256)
    monkeypatch.setattr(pairs, "COLUMNS", 1024)
    monkeypatch.setattr(pairs, "SLAB", 2**16)
    vectors = unit(some_vectors(8000))
    tracemalloc.start()
    found = best_pairs(vectors, 100)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(found) == 100
    assert peak < 3e6 < 8000**2 * 4


def test_vectors_may_stay_in_their_file(small_tiles, tmp_path, monkeypatch):
    vectors = some_vectors(50)
    assert best_pairs(UnitVectors(vectors), 30).tolist() == best_pairs(unit(vectors), 30).tolist()
    monkeypatch.undo()
    monkeypatch.setattr(pairs, "ROWS", 64)
    monkeypatch.setattr(pairs, "COLUMNS", 512)
    monkeypatch.setattr(exact_index, "ROWS", 512)
    np.save(tmp_path / "vectors.npy", np.random.default_rng(0).normal(size=(2000, 512)))
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    tracemalloc.start()
    best_pairs(UnitVectors(mapped), 10)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 3e6 < 2000 * 512 * 4  # some tiles of 512 vectors in float32, 1 MB each


def slowly_near(vectors, top, threshold, neighbours):
    """(cosine, first, second) of each vector and its nearest others, best first."""
    every = slowly(vectors, len(vectors) ** 2, None)
    found = set()
    for number in range(len(vectors)):
        found |= set([pair for pair in every if number in pair[1:]][:neighbours])
    found = {pair for pair in found if threshold is None or pair[0] >= threshold}
    return sorted(found, key=lambda pair: (-pair[0], *pair[1:]))[:top]


def index_of(vectors, backend):
    pytest.importorskip("faiss", reason="is not installed")
    index = make_index(backend, vectors.shape[1])
    index.add(vectors)
    return index


@pytest.mark.parametrize(("top", "threshold"), [(1, None), (9, None), (2000, None), (30, 0.8)])
def test_pairs_of_neighbours_are_those_of_a_slow_loop(small_tiles, monkeypatch, top, threshold):
    monkeypatch.setattr(pairs, "NEIGHBOURS", 3)
    vectors = some_vectors(50)
    index, counted = index_of(vectors, "flat"), []
    expected = slowly_near(vectors, top, threshold, 3)
    found = near_pairs(index, UnitVectors(vectors), top, threshold, done=counted.append)
    assert found[["first", "second"]].tolist() == [pair[1:] for pair in expected]
    np.testing.assert_allclose(found["cosine"], [pair[0] for pair in expected], atol=1e-6)
    assert sum(counted) == 50
    rows = [range(0, 20), range(20, 21), range(21, 50)]
    parts = [near_pairs(index, unit(vectors), top, threshold, rows=part) for part in rows]
    assert merged(parts, top).tolist() == found.tolist()


@pytest.fixture(scope="module")
def grouped():
    """10,000 vectors in groups of four, and their best pairs."""
    random = np.random.default_rng(3)
    vectors = np.repeat(random.normal(size=(2500, 16)), 4, axis=0)
    vectors = (vectors + random.normal(0, 0.2, vectors.shape)).astype(np.float32)
    return vectors, best_pairs(unit(vectors), 2000)


@pytest.mark.parametrize(("backend", "least"), [("hnsw", 0.97), ("ivfpq", 0.8)])
def test_approximate_indexes_find_most_pairs_with_their_true_cosines(grouped, backend, least):
    vectors, expected = grouped
    found = near_pairs(index_of(vectors, backend), UnitVectors(vectors), 2000)
    shared = {*found[["first", "second"]].tolist()} & {*expected[["first", "second"]].tolist()}
    assert least < len(shared) / 2000 <= 1
    a, b = unit(vectors)[found["first"]], unit(vectors)[found["second"]]
    np.testing.assert_allclose(found["cosine"], (a * b).sum(axis=1), atol=1e-6)


def test_encoder_finds_the_pairs_of_its_index(model):
    embed = SentenceEncoder.of(model)
    with pytest.raises(UserError, match="call build_index first"):
        embed.pairs()
    sentences = ["the cat", "old river", "the dog", "the cat", "a night"]
    embed.build_index(sentences)
    vectors = embed.encode(sentences)
    found = embed.pairs(3)
    assert found[0] == ((0, 3), ("the cat", "the cat"), pytest.approx(1))
    expected = slowly(vectors, 3, None)
    assert [pair.indices for pair in found] == [pair[1:] for pair in expected]
    for pair in found:
        assert pair.sentences == tuple(sentences[number] for number in pair.indices)
    assert embed.pairs(9, threshold=0.99999) == found[:1]
    with pytest.raises(UserError, match="top = 0"):
        embed.pairs(0)
