"""Nearest neighbours by cosine: exact in numpy, or in faiss if it is installed."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from jtcse_jax.errors import UserError

ROWS = 65_536  # vectors compared at once
QUERIES = 256  # queries compared at once; with ROWS, 64 MiB of scores

Found = tuple[np.ndarray, np.ndarray]  # numbers [k] int64 and cosines [k] float32, best first


class ExactIndex:
    """Compares every query with all vectors; among equal cosines the first vectors come first."""

    def __init__(self, width: int):
        """Makes an empty index of vectors [width]."""
        self.width = width
        self._vectors = np.empty((0, width), np.float32)
        self._count = 0

    def __len__(self) -> int:
        """Number of vectors."""
        return self._count

    def add(self, vectors: np.ndarray) -> None:
        """Adds vectors [n, width], numbered over all calls. UserError if one is not finite."""
        vectors = unit(vectors)
        needed = self._count + len(vectors)
        if needed > len(self._vectors):  # double the space, so that small additions are cheap
            grown = np.empty((max(needed, 2 * self._count), self.width), np.float32)
            grown[: self._count] = self._vectors[: self._count]
            self._vectors = grown
        self._vectors[self._count : needed] = vectors
        self._count = needed

    def search(
        self, queries: np.ndarray, top_k: int, threshold: float | None = None
    ) -> list[Found]:
        """For each query [n, width], the `top_k` nearest with a cosine of `threshold` or more."""
        queries = unit(queries)
        return [
            found
            for start in range(0, len(queries), QUERIES)
            for found in self._search(queries[start : start + QUERIES], top_k, threshold)
        ]

    def _search(self, queries: np.ndarray, top_k: int, threshold: float | None) -> Iterator[Found]:
        best: list[Found] = [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        for start in range(0, self._count, ROWS):
            block = self._vectors[start : min(start + ROWS, self._count)]
            for query, scores in enumerate(queries @ block.T):
                here = _largest(scores, top_k)
                numbers = np.concatenate([best[query][0], start + here])
                cosines = np.concatenate([best[query][1], scores[here]])
                kept = _largest(cosines, top_k)
                best[query] = numbers[kept], cosines[kept]
        for numbers, cosines in best:
            yield _above(numbers, cosines, threshold)


class FaissIndex:
    """The flat index of faiss: the same cosines, with more threads; needs the package faiss."""

    def __init__(self, width: int):
        """Makes an empty index of vectors [width]. UserError if faiss is not installed."""
        self.width = width
        self._index = _import_faiss().IndexFlatIP(width)

    def __len__(self) -> int:
        """Number of vectors."""
        return self._index.ntotal

    def add(self, vectors: np.ndarray) -> None:
        """As `ExactIndex.add`."""
        self._index.add(unit(vectors))

    def search(
        self, queries: np.ndarray, top_k: int, threshold: float | None = None
    ) -> list[Found]:
        """As `ExactIndex.search`, except for the order of equal cosines."""
        cosines, numbers = self._index.search(unit(queries), min(top_k, len(self)) or 1)
        found = []
        for row, scores in zip(numbers, cosines, strict=True):
            there = row >= 0  # faiss pads with -1
            found.append(_above(row[there], scores[there], threshold))
        return found


BACKENDS = {"exact": ExactIndex, "faiss": FaissIndex}


def make_index(backend: str, width: int) -> ExactIndex | FaissIndex:
    """Makes an empty index, "exact" or "faiss". UserError: another name, or faiss is missing."""
    if backend not in BACKENDS:
        raise UserError(f"backend = {backend!r}: choose {' or '.join(BACKENDS)}.")
    return BACKENDS[backend](width)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scales vectors [n, D] to length 1, float32; zeros stay. UserError if one is not finite."""
    vectors = np.asarray(vectors, np.float32)
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    bad = np.flatnonzero(~np.isfinite(norms))
    if len(bad):
        raise UserError(f"Vector {bad[0]} is not finite: use an earlier step of the model.")
    return vectors / np.maximum(norms, 1e-12)


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest of [n], largest first; among equal ones the first."""
    candidates = np.arange(len(scores))
    if len(scores) > k:
        candidates = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


def _above(numbers: np.ndarray, cosines: np.ndarray, threshold: float | None) -> Found:
    if threshold is None:
        return numbers, cosines
    return numbers[cosines >= threshold], cosines[cosines >= threshold]


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError("backend faiss needs the package faiss: pip install faiss-cpu") from error
    return faiss
