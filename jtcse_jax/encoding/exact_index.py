"""Nearest neighbours by cosine, exactly, in numpy."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np

from jtcse_jax.errors import UserError

ROWS = 65_536  # vectors compared at once
QUERIES = 256  # queries compared at once; with ROWS, 64 MiB of scores

Found = tuple[np.ndarray, np.ndarray]  # numbers [k] int64 and cosines [k] float32, best first


class Vectors(Protocol):
    """[n, D] float32 vectors of length 1 in memory, or `UnitVectors`."""

    def __len__(self) -> int:
        """Number of vectors."""
        ...

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        """The vectors of some rows."""
        ...


class ExactIndex:
    """Compares every query with all vectors; among equal cosines the first vectors come first."""

    backend, file = "exact", "vectors.npy"

    def __init__(self, width: int):
        """Makes an empty index of vectors [width]."""
        self.width = width
        self._vectors: Vectors = np.empty((0, width), np.float32)
        self._count = 0

    @classmethod
    def mapped(cls, vectors: np.ndarray) -> "ExactIndex":
        """The index of vectors [n, width] that stay in the file they are mapped from.

        It scales them whenever it reads them. UserError if one is not finite.
        """
        index = cls(vectors.shape[1])
        index._vectors, index._count = UnitVectors(vectors), len(vectors)
        return index

    def __len__(self) -> int:
        """Number of vectors."""
        return self._count

    def add(self, vectors: np.ndarray) -> None:
        """Adds vectors [n, width], numbered over all calls. UserError if one is not finite."""
        vectors = unit(vectors)
        needed = self._count + len(vectors)
        if not self._count:
            self._vectors = vectors
        else:
            space = self._vectors
            if not isinstance(space, np.ndarray) or needed > len(space):
                # Double the space, so that small additions are cheap.
                space = np.empty((max(needed, 2 * self._count), self.width), np.float32)
                space[: self._count] = self._vectors[: self._count]
                self._vectors = space
            space[self._count : needed] = vectors
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


class UnitVectors:
    """Vectors [n, D], usually mapped from a file, that are scaled to length 1 when they are read.

    In memory are only their lengths. `vectors[rows]` gives float32, equal to `unit(vectors)[rows]`.
    """

    def __init__(self, vectors: np.ndarray):
        """Reads all vectors once. UserError if one is not finite."""
        self._vectors = vectors
        starts = range(0, len(vectors), ROWS)
        self._lengths = np.concatenate(
            [np.empty((0, 1), np.float32), *(_lengths(vectors, start) for start in starts)]
        )

    def __len__(self) -> int:
        """Number of vectors."""
        return len(self._vectors)

    def __getitem__(self, rows: slice | np.ndarray, /) -> np.ndarray:
        """The vectors of some rows."""
        return np.asarray(self._vectors[rows], np.float32) / self._lengths[rows]


def unit(vectors: np.ndarray) -> np.ndarray:
    """Scales vectors [n, D] to length 1, float32; zeros stay. UserError if one is not finite."""
    scaled = np.empty(vectors.shape, np.float32)
    for start in range(0, len(vectors), ROWS):  # so that a mapped file is never copied whole
        rows = slice(start, start + ROWS)
        block = np.asarray(vectors[rows], np.float32)
        np.divide(block, _lengths(vectors, start), out=scaled[rows])
    return scaled


def _lengths(vectors: np.ndarray, start: int) -> np.ndarray:
    """[k, 1] float32, what divides the ROWS vectors from `start` on."""
    lengths = np.linalg.norm(
        np.asarray(vectors[start : start + ROWS], np.float32), axis=1, keepdims=True
    )
    bad = np.flatnonzero(~np.isfinite(lengths))
    if len(bad):
        raise UserError(f"Vector {start + bad[0]} is not finite: use an earlier step of the model.")
    return np.maximum(lengths, 1e-12)


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
