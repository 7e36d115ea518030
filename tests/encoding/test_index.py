"""Nearest neighbours, against a full sort of all cosines."""

import sys

import numpy as np
import pytest

from jtcse_jax.encoding import index
from jtcse_jax.errors import UserError


def sorted_cosines(vectors, queries):
    """Numbers by falling cosine, equal ones in their order, and the cosines [q, n]."""
    lengths = np.linalg.norm(queries, axis=1)[:, None] * np.linalg.norm(vectors, axis=1)
    cosines = queries @ vectors.T / lengths
    return np.argsort(-cosines, axis=1, kind="stable"), cosines


@pytest.fixture(params=["exact", "faiss"])
def make(request):
    if request.param == "faiss":
        pytest.importorskip("faiss", reason="faiss is not installed (pip install faiss-cpu)")
    return lambda width: index.make_index(request.param, width)


@pytest.mark.parametrize("top_k", [1, 7, 300])
def test_nearest_are_those_of_a_full_sort(make, monkeypatch, top_k):
    monkeypatch.setattr(index, "ROWS", 64)
    monkeypatch.setattr(index, "QUERIES", 5)
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
    monkeypatch.setattr(index, "ROWS", 4)
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


def test_vectors_that_are_not_finite_are_refused(make):
    with pytest.raises(UserError, match="Vector 1 is not finite"):
        make(2).add(np.array([[1, 1], [np.nan, 1]]))


def test_absent_faiss_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(UserError, match="needs the package faiss: pip install faiss-cpu"):
        index.make_index("faiss", 2)
