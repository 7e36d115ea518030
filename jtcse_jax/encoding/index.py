"""Nearest neighbours by cosine: exact in numpy, or in faiss if it is installed.

On disk an index is a folder: `vectors.npy` [n, D] float32, `sentences.jsonl` with one JSON string a
line, and `index.json` with the hash of the model.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jtcse_jax.errors import UserError, writing
from jtcse_jax.user_path import user_path

VECTORS, SENTENCES, MODEL = "vectors.npy", "sentences.jsonl", "index.json"

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

    @property
    def vectors(self) -> np.ndarray:
        """[n, width] float32, of length 1."""
        return self._vectors[: self._count]

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

    @property
    def vectors(self) -> np.ndarray:
        """[n, width] float32, of length 1."""
        return self._index.reconstruct_n(0, len(self))

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


Index = ExactIndex | FaissIndex
BACKENDS = {"exact": ExactIndex, "faiss": FaissIndex}


def make_index(backend: str, width: int) -> Index:
    """Makes an empty index, "exact" or "faiss". UserError: another name, or faiss is missing."""
    if backend not in BACKENDS:
        raise UserError(f"backend = {backend!r}: choose {' or '.join(BACKENDS)}.")
    return BACKENDS[backend](width)


def save(folder: str | Path, index: Index, sentences: Sequence[str], model: str) -> None:
    """Writes an index; the folder appears complete or not at all.

    Args:
      folder: must be empty or not exist.
      index: the vectors.
      sentences: their sentences, in the same order.
      model: the hash of the model that encoded them.
    Raises:
      UserError: the folder is not empty or cannot be written.
    """
    folder = user_path(folder).absolute()
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder} exists and is not empty; choose a new folder for the index.")
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        with writing(folder):
            shutil.rmtree(partial, ignore_errors=True)
            partial.mkdir(parents=True)
            np.save(partial / VECTORS, index.vectors)
            with (partial / SENTENCES).open("w", encoding="ascii") as file:
                file.writelines(json.dumps(sentence) + "\n" for sentence in sentences)
            (partial / MODEL).write_text(json.dumps({"model": model}) + "\n", encoding="ascii")
            partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def load(folder: str | Path, backend: str, model: str) -> tuple[Index, list[str]]:
    """Reads an index and its sentences.

    Raises UserError if the folder holds no index, it is damaged, or `model` did not encode it.
    """
    folder = user_path(folder)
    try:
        vectors = np.load(folder / VECTORS, mmap_mode="r", allow_pickle=False)
        with (folder / SENTENCES).open(encoding="ascii") as file:
            sentences = [json.loads(line) for line in file]
        encoded_by = json.loads((folder / MODEL).read_text(encoding="ascii"))["model"]
        intact = vectors.dtype == np.float32 and vectors.ndim == 2
        intact = intact and len(vectors) == len(sentences)
        intact = intact and all(isinstance(sentence, str) for sentence in sentences)
    except FileNotFoundError as error:
        raise UserError(
            f"{folder} is not an index: it has no {Path(error.filename).name}."
        ) from error
    except (OSError, ValueError, LookupError, TypeError, EOFError, RecursionError) as error:
        raise UserError(f"{folder}: the index is damaged ({error}): build it again.") from error
    if not intact:
        raise UserError(f"{folder}: the index is damaged: build it again.")
    if encoded_by != model:
        raise UserError(
            f"{folder}: another model encoded this index, or this one with other settings: build "
            "it again."
        )
    index = make_index(backend, vectors.shape[1])
    index.add(vectors)
    return index, sentences


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
