"""Similarities of vectors, by the names that folders of sentence-transformers have for them."""

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike

from jtcse_jax.errors import UserError


def similarity(name: str, first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """[n, m] similarities of vectors [n, D] and [m, D]; UserError for anything but vectors."""
    first, second = _vectors("similarity", first, second)
    if name == "cosine":
        return scaled(first) @ scaled(second).T  # so that only one [n, m] array is in memory
    if name == "dot":
        return first @ second.T
    return (
        np.stack([_PAIRWISE[name](row, second) for row in first])
        if len(first)
        else (np.empty((0, len(second)), first.dtype))
    )


def similarity_pairwise(name: str, first: ArrayLike, second: ArrayLike) -> np.ndarray:
    """[n] similarities of vectors [n, D] and [n, D], row by row; UserError for anything else."""
    first, second = _vectors("similarity_pairwise", first, second)
    if len(first) != len(second):
        raise UserError(
            f"similarity_pairwise takes equally many vectors on both sides, not {len(first)} and "
            f"{len(second)}."
        )
    return _PAIRWISE[name](first, second)


def scaled(vectors: np.ndarray) -> np.ndarray:
    """Vectors [n, D] scaled to length 1; zeros stay."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)


_PAIRWISE: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "cosine": lambda first, second: np.sum(scaled(first) * scaled(second), axis=-1),
    "dot": lambda first, second: np.sum(first * second, axis=-1),
    "euclidean": lambda first, second: -np.linalg.norm(first - second, axis=-1),
    "manhattan": lambda first, second: -np.abs(first - second).sum(axis=-1),
}


def _vectors(function: str, *sides: ArrayLike) -> list[np.ndarray]:
    both = [np.atleast_2d(side) for side in sides]
    if not all(np.issubdtype(side.dtype, np.number) for side in both):
        raise UserError(f"{function} takes vectors: encode the sentences first.")
    if both[0].shape[-1] != both[1].shape[-1]:
        raise UserError(
            f"{function} takes vectors of one width, not of {both[0].shape[-1]} and "
            f"{both[1].shape[-1]}."
        )
    return both
