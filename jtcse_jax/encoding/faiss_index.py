"""Nearest neighbours by cosine, in faiss: exact with more threads, or approximate."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from jtcse_jax.encoding.exact_index import ROWS, Found, UnitVectors, above, unit
from jtcse_jax.errors import UserError

LEAST_CODED = 10_000  # vectors from which ivfpq can learn
_PER_LIST = 128  # vectors per list that ivfpq learns from, so that memory and time are bounded

Kind = Literal["flat", "hnsw", "ivfpq"]


class FaissIndex:
    """An index of the package faiss: "flat", "hnsw" or "ivfpq"."""

    file = "index.faiss"

    def __init__(self, width: int, backend: Kind):
        """Makes an empty index of vectors [width]. UserError if faiss is not installed."""
        _import_faiss()
        self.width, self.backend, self._index = width, backend, None

    def __len__(self) -> int:
        """Number of vectors."""
        return 0 if self._index is None else self._index.ntotal

    def add(self, vectors: np.ndarray, *, done: Callable[[int], None] = lambda count: None) -> None:
        """As `ExactIndex.add`. UserError if the first vectors of "ivfpq" are fewer than 10,000.

        `vectors` may be mapped from a file: only some are in memory at a time, besides the index.
        `done` is called repeatedly with the number of newly added ones.
        """
        scaled = UnitVectors(vectors)
        if self._index is None:
            self._index = self._begun(scaled)
        for start in range(0, len(scaled), ROWS):
            block = scaled[start : start + ROWS]
            self._index.add(block)
            done(len(block))

    def _begun(self, vectors: UnitVectors) -> Any:
        """An empty index of faiss, with what it learns from the first vectors."""
        faiss = _import_faiss()
        make, metric = faiss.index_factory, faiss.METRIC_INNER_PRODUCT
        if self.backend == "flat":
            return make(self.width, "Flat", metric)
        if self.backend == "hnsw":
            index = make(self.width, "HNSW32", metric)
            index.hnsw.efConstruction, index.hnsw.efSearch = 128, 128
            return index
        if len(vectors) < LEAST_CODED:
            raise UserError(
                f"backend ivfpq: {len(vectors):,} sentences are too few to learn its codes from; "
                f"give {LEAST_CODED:,} or more at first, or choose hnsw."
            )
        lists = min(int(4 * math.sqrt(len(vectors))), len(vectors) // 39)  # 39: as faiss advises
        numbers = max(n for n in range(1, max(1, self.width // 4) + 1) if self.width % n == 0)
        # np: without an order of the codes that only a Hamming filter uses, and which takes long.
        index = make(self.width, f"IVF{lists},PQ{numbers}np", metric)
        index.nprobe = max(8, lists // 16)
        index.train(vectors[:: math.ceil(len(vectors) / (_PER_LIST * lists))])
        return index

    @property
    def vectors(self) -> np.ndarray:
        """[n, width] float32, of length 1. UserError for "ivfpq", which does not keep them."""
        if self.backend == "ivfpq":
            raise UserError("backend ivfpq keeps codes, not the vectors: build an exact index.")
        if self._index is None:
            return np.empty((0, self.width), np.float32)
        return self._index.reconstruct_n(0, len(self))

    def write(self, path: Path) -> None:
        """Writes the index. UserError if it is empty, OSError if it cannot be written."""
        if self._index is None:
            raise UserError("The index is empty: add sentences before you save it.")
        try:
            _import_faiss().write_index(self._index, str(path))
        except RuntimeError as error:  # faiss's own, also of a full disk
            raise OSError(f"faiss: {error}") from error

    @classmethod
    def read(cls, path: Path, backend: Kind) -> "FaissIndex":
        """Reads what `write` wrote. Raises RuntimeError for another file."""
        index = cls(0, backend)
        index._index = _import_faiss().read_index(str(path))
        index.width = index._index.d
        return index

    def search(
        self, queries: np.ndarray, top_k: int, threshold: float | None = None
    ) -> list[Found]:
        """As `ExactIndex.search`, except for the order of equal cosines, and "hnsw" and "ivfpq"."""
        if self._index is None:
            return [(np.empty(0, np.int64), np.empty(0, np.float32))] * len(queries)
        cosines, numbers = self._index.search(unit(queries), min(top_k, len(self)) or 1)
        found = []
        for row, scores in zip(numbers, cosines, strict=True):
            there = row >= 0  # faiss pads with -1
            found.append(above(row[there], scores[there], threshold))
        return found


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise UserError(
            "backend flat, hnsw and ivfpq need the package faiss: pip install faiss-cpu"
        ) from error
    return faiss
