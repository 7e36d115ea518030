"""Nearest neighbours, against a full sort of all cosines."""

import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from jtcse_jax.encoding import exact_index, index
from jtcse_jax.encoding.faiss_index import LEAST_CODED
from jtcse_jax.errors import UserError


def sorted_cosines(vectors, queries):
    """Numbers by falling cosine, equal ones in their order, and the cosines [q, n]."""
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
    cosines = queries @ vectors.T / lengths
    return np.argsort(-cosines, axis=1, kind="stable"), cosines


NO_FAISS = "faiss is not installed (pip install faiss-cpu)"


@pytest.fixture(params=["exact", "flat"])
def make(request):
    if request.param == "flat":
        pytest.importorskip("faiss", reason=NO_FAISS)
    return lambda width: index.make_index(request.param, width)


@pytest.mark.parametrize("top_k", [1, 7, 300])
def test_nearest_are_those_of_a_full_sort(make, monkeypatch, top_k):
    monkeypatch.setattr(exact_index, "ROWS", 64)
    monkeypatch.setattr(exact_index, "QUERIES", 5)
    random = np.random.default_rng(0)
    vectors, queries = random.normal(2, 3, (200, 8)), random.normal(2, 3, (12, 8))
    order, cosines = sorted_cosines(vectors, queries)
    made = make(8)
    for part in np.split(vectors, [1, 2, 90]):
        made.add(part)
    assert len(made) == 200
    for query, (numbers, scores) in enumerate(made.search(queries, top_k)):
        assert numbers.tolist() == order[query, :top_k].tolist()
        np.testing.assert_allclose(scores, cosines[query, numbers], atol=1e-5)
    least = float(np.median(cosines))
    for query, (numbers, scores) in enumerate(made.search(queries, top_k, least)):
        expected = order[query][cosines[query, order[query]] >= least][:top_k]
        assert numbers.tolist() == expected.tolist() and (scores >= least).all()


def test_equal_cosines_keep_their_order(monkeypatch):
    monkeypatch.setattr(exact_index, "ROWS", 4)
    made = index.make_index("exact", 2)
    made.add(np.array([[1, 0], [0, 1], [2, 0], [0, 1], [1, 1], [1, 0], [5, 0], [0, 1]]))
    ((numbers, scores),) = made.search(np.array([[3.0, 0.0]]), 3)
    assert numbers.tolist() == [0, 2, 5] and scores.tolist() == [1, 1, 1]


def test_zero_vectors_and_an_empty_index(make):
    made = make(3)
    assert [len(numbers) for numbers, _ in made.search(np.ones((2, 3)), 4)] == [0, 0]
    made.add(np.zeros((2, 3)))
    ((_, scores),) = made.search(np.ones((1, 3)), 4)
    assert scores.tolist() == [0, 0]


def test_vectors_that_are_not_finite_are_refused(make, monkeypatch):
    monkeypatch.setattr(exact_index, "ROWS", 1)
    with pytest.raises(UserError, match="Vector 1 is not finite"):
        make(2).add(np.array([[1, 1], [np.nan, 1]]))


@pytest.mark.parametrize("backend", ["flat", "hnsw", "ivfpq"])
def test_absent_faiss_is_named(monkeypatch, backend):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="pip install faiss-cpu"):
        index.make_index(backend, 2)


@pytest.fixture(scope="module")
def many():
    """Vectors in 500 groups, and queries near some of them."""
    random = np.random.default_rng(3)
    centres = random.normal(0, 1, (500, 16))
    vectors = np.repeat(centres, LEAST_CODED // 500, axis=0)
    vectors += random.normal(0, 0.4, vectors.shape)
    return vectors.astype(np.float32), (centres[:50] + random.normal(0, 0.4, (50, 16)))


@pytest.mark.parametrize(("backend", "least"), [("hnsw", 0.97), ("ivfpq", 0.6)])
def test_approximate_indexes_find_most_neighbours(many, tmp_path, backend, least):
    """Also after they were saved, and sentences that were added later."""
    pytest.importorskip("faiss", reason=NO_FAISS)
    vectors, queries = many
    order, cosines = sorted_cosines(vectors, queries)
    made = index.make_index(backend, 16)
    assert [len(numbers) for numbers, _ in made.search(queries[:2], 10)] == [0, 0]
    made.add(vectors)
    found = made.search(queries, 10)
    shared = [
        len({*numbers} & {*best}) for (numbers, _), best in zip(found, order[:, :10], strict=True)
    ]
    assert least < np.mean(shared) / 10 < 1.001
    for query, (numbers, scores) in enumerate(found):
        np.testing.assert_allclose(scores, cosines[query, numbers], atol=0.2)
        assert (np.diff(scores) <= 0).all()
    index.save(tmp_path / "index", made, ["text"] * len(made), "model")
    again, _ = index.load(tmp_path / "index", "model")
    assert (again.backend, again.width, len(again)) == (backend, 16, len(vectors))
    again.add(queries[:1])
    (numbers, _), *others = again.search(queries, 10)
    assert len(vectors) in numbers
    for (one, _), (other, _) in zip(others, found[1:], strict=True):
        assert one.tolist() == other.tolist()
    if backend == "hnsw":
        expected = exact_index.unit(vectors)
        np.testing.assert_allclose(made.vectors, expected, atol=1e-6)


def test_codes_need_many_vectors_and_keep_none():
    pytest.importorskip("faiss", reason=NO_FAISS)
    made = index.make_index("ivfpq", 32)
    with pytest.raises(UserError, match="backend ivfpq: 9 sentences"):
        made.add(np.ones((9, 32)))
    with pytest.raises(UserError, match="backend ivfpq"):
        made.vectors  # noqa: B018  # a property


@pytest.fixture
def mapped(tmp_path):
    """Maps vectors from a file."""

    def call(vectors):
        np.save(tmp_path / "vectors.npy", vectors)
        return np.load(tmp_path / "vectors.npy", mmap_mode="r")

    return call


def test_scaled_when_read_is_scaled_at_once(mapped, monkeypatch):
    monkeypatch.setattr(exact_index, "ROWS", 16)
    vectors = np.random.default_rng(4).normal(2, 3, (50, 8)).astype(np.float32)
    vectors[7] = 0
    scaled = exact_index.UnitVectors(mapped(vectors))
    assert len(scaled) == 50
    np.testing.assert_array_equal(scaled[:], exact_index.unit(vectors))
    np.testing.assert_array_equal(scaled[3:40:5], exact_index.unit(vectors)[3:40:5])
    some = np.array([40, 2, 2])
    np.testing.assert_allclose(
        scaled[some], vectors[some] / np.linalg.norm(vectors[some], axis=1)[:, None], rtol=1e-6
    )
    vectors[33, 1] = np.inf
    with pytest.raises(UserError, match="Vector 33 is not finite"):
        exact_index.UnitVectors(mapped(vectors))


@pytest.mark.parametrize("backend", ["exact", "flat"])
def test_mapped_vectors_are_searched_like_others(mapped, monkeypatch, tmp_path, backend):
    if backend == "flat":
        pytest.importorskip("faiss", reason=NO_FAISS)
    monkeypatch.setattr(exact_index, "ROWS", 64)
    random = np.random.default_rng(5)
    vectors, queries = random.normal(2, 3, (200, 8)), random.normal(2, 3, (12, 8))
    made = index.mapped_index(backend, mapped(vectors[:150]), tmp_path / "index.faiss")
    made.add(vectors[150:])
    order, _ = sorted_cosines(vectors, queries)
    for query, (numbers, _) in enumerate(made.search(queries, 9)):
        assert numbers.tolist() == order[query, :9].tolist()
    np.testing.assert_allclose(made.vectors, exact_index.unit(vectors), atol=1e-6)


def test_mapped_vectors_stay_in_their_file(mapped):
    vectors = mapped(np.random.default_rng(6).normal(size=(40_000, 64)).astype(np.float32))
    tracemalloc.start()
    made = index.mapped_index("exact", vectors, Path("unused"))
    ((numbers, _),) = made.search(vectors[9:10], 1)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert numbers.tolist() == [9]
    assert peak < 3 * 65_536 * 64 * 4 + 1e6  # ROWS of them at a time, and what scales them


def test_an_index_of_mapped_vectors_is_made_once(mapped, monkeypatch, tmp_path, capsys):
    pytest.importorskip("faiss", reason=NO_FAISS)
    vectors = mapped(np.random.default_rng(7).normal(size=(90, 8)).astype(np.float32))
    path = tmp_path / "index.faiss"
    add = index.FaissIndex.add
    monkeypatch.setattr(index.FaissIndex, "add", lambda *_, **__: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        index.mapped_index("hnsw", vectors, path)
    assert not path.exists()
    monkeypatch.setattr(index.FaissIndex, "add", add)
    first = index.mapped_index("hnsw", vectors, path)
    assert "90/90" in capsys.readouterr().err
    monkeypatch.setattr(index.FaissIndex, "add", lambda *_, **__: 1 / 0)
    again = index.mapped_index("hnsw", vectors, path)
    for (one, _), (other, _) in zip(
        first.search(vectors, 3), again.search(vectors, 3), strict=True
    ):
        assert one.tolist() == other.tolist()
    assert {each.name for each in tmp_path.iterdir()} == {"vectors.npy", "index.faiss"}
