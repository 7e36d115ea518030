"""Nearest neighbours by cosine, exactly, in numpy."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from jtcse_jax.errors import UserError

ROWS = 65_536  # vectors compared at once
QUERIES = 256  # queries compared at once; with ROWS, 64 MiB of scores

Found = tuple[np.ndarray, np.ndarray]  # numbers [k] int64 and cosines [k] float32, best first


class ExactIndex:
    """Compares every query with all vectors; among equal cosines the first vectors come first."""

    backend, file = "exact", "vectors.npy"

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
        if not self._count:
            self._vectors = vectors
        elif needed > len(self._vectors):  # double the space, so that small additions are cheap
            grown = np.empty((max(needed, 2 * self._count), self.width), np.float32)
            grown[: self._count] = self._vectors[: self._count]
            self._vectors = grown
        self._vectors[self._count : needed] = vectors
        self._count = needed

    @property
    def vectors(self) -> np.ndarray:
        """[n, width] float32, of length 1."""
        return self._vectors[: self._count]

    def write(self, path: Path) -> None:
        """Writes the vectors."""
        np.save(path, self.vectors)

    @classmethod
    def read(cls, path: Path) -> "ExactIndex":
        """Reads what `write` wrote. Raises ValueError for another file."""
        vectors = np.load(path, mmap_mode="r", allow_pickle=False)
        if vectors.dtype != np.float32 or vectors.ndim != 2:
            raise ValueError(f"{vectors.dtype} {list(vectors.shape)}")
        index = cls(vectors.shape[1])
        index.add(vectors)
        return index

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
            yield above(numbers, cosines, threshold)


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scales vectors [n, D] to length 1, float32; zeros stay. UserError if one is not finite."""
    scaled = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), ROWS):  # so that a mapped file is never copied whole
        block = np.asarray(vectors[start : start + ROWS], np.float32)
        norms = np.linalg.norm(block, axis=1, keepdims=True)
        bad = np.flatnonzero(~np.isfinite(norms))
        if len(bad):
            raise UserError(
                f"Vector {start + bad[0]} is not finite: use an earlier step of the model."
            )
        np.divide(block, np.maximum(norms, 1e-12), out=scaled[start : start + ROWS])
    return scaled


def _largest(scores: np.ndarray, k: int) -> np.ndarray:
    """Indices of the k largest of [n], largest first; among equal ones the first."""
    candidates = np.arange(len(scores))
    if len(scores) > k:
        candidates = np.flatnonzero(scores >= np.partition(scores, -k)[-k])
    return candidates[np.argsort(-scores[candidates], kind="stable")[:k]]


def above(numbers: np.ndarray, cosines: np.ndarray, threshold: float | None) -> Found:
    """The results with a cosine of `threshold` or more."""
    if threshold is None:
        return numbers, cosines
    return numbers[cosines >= threshold], cosines[cosines >= threshold]
