"""An order of sentences in which neighbours are similar, by recursive bisection.

A set of vectors is split into halves along its first principal direction, and each half again,
down to groups of a given size. The direction of a half points the same way as its parent's, so
neighbours on both sides of a split are also near each other. All arithmetic is on integers and
exact in any order of summation: the same vectors give the same order on every machine.
"""

import numpy as np

_UNIT = 127  # length of a quantised vector, so that its entries fit int8
_SAMPLE = 512  # members whose principal direction splits a set
_POWER_ITERATIONS = 5
_CHUNK = 2**16
_WINDOW = 64
_NEARLY = 0.9


def similar_order(vectors: np.ndarray, group: int) -> np.ndarray:
    """An order of all items in which contiguous runs of `group` items and more are similar.

    Args:
        vectors: [n, d] floats of any length, or the result of `quantised`; similarity is the
            cosine.
        group: size of a group that is not split further, at least 1.

    Returns:
        [n] int64, each item once; a function of the arguments.
    """
    if vectors.dtype != np.int8:
        vectors = quantised(vectors)
    order = np.arange(len(vectors))
    rng = np.random.default_rng(0)
    waiting = [(0, len(order), np.zeros(vectors.shape[1]))]
    while waiting:
        start, stop, parent = waiting.pop()
        if stop - start <= group:
            continue
        members = order[start:stop]
        direction = _principal_direction(vectors, members, parent, rng)
        members = members[np.argsort(_projections(vectors, members, direction), kind="stable")]
        order[start:stop] = members
        middle = start + group * ((stop - start + group) // (2 * group))
        waiting += [(middle, stop, direction), (start, middle, direction)]
    return order


def near_duplicates(vectors: np.ndarray, order: np.ndarray) -> np.ndarray:
    """[n] bool, True at positions of `order` that nearly repeat one of the 64 to 127 before them.

    Two items nearly repeat each other if the cosine of their vectors is above 0.9.

    Args:
        vectors: [n, d] as in `similar_order`.
        order: [n], the result of `similar_order`.
    """
    if vectors.dtype != np.int8:
        vectors = quantised(vectors)
    found = np.zeros(len(order), bool)
    for start in range(0, len(order), _WINDOW):
        members = vectors[order[max(start - _WINDOW, 0) : start + _WINDOW]].astype(np.float32)
        new = len(order[start : start + _WINDOW])
        near = members[-new:] @ members.T > _NEARLY * _UNIT**2
        before = np.arange(len(members)) < np.arange(len(members) - new, len(members))[:, None]
        found[start : start + _WINDOW] = (near & before).any(axis=1)
    return found


def quantised(vectors: np.ndarray) -> np.ndarray:
    """[n, d] int8, the vectors scaled to length 127 and rounded; zero vectors stay zero."""
    result = np.empty(vectors.shape, np.int8)
    for start in range(0, len(vectors), _CHUNK):
        result[start : start + _CHUNK] = _of_unit_length(vectors[start : start + _CHUNK])
    return result


def _principal_direction(
    vectors: np.ndarray, members: np.ndarray, parent: np.ndarray, rng: np.random.Generator
) -> np.ndarray:
    """[d] float64 with integer values, of length about 127; its product with `parent` is >= 0."""
    if len(members) > _SAMPLE:
        members = members[rng.integers(len(members), size=_SAMPLE)]
    sample = vectors[members].astype(np.float64)
    sample = len(sample) * sample - sample.sum(axis=0)  # centred, values are still integers
    direction = sample[np.abs(sample).sum(axis=1).argmax()]
    for _ in range(_POWER_ITERATIONS):
        direction = _of_unit_length(direction)
        direction = _of_unit_length(sample @ direction) @ sample
    direction = _of_unit_length(direction)
    return -direction if direction @ parent < 0 else direction


def _of_unit_length(vectors: np.ndarray) -> np.ndarray:
    """float64, vectors on the last axis scaled to length 127 and rounded; zeros stay zero."""
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    scaled = np.rint(2**20 * (vectors / np.where(largest > 0, largest, 1)).astype(np.float64))
    norms = np.sqrt((scaled**2).sum(axis=-1, keepdims=True))  # exact: integers below 2**53
    return np.rint(_UNIT * scaled / np.where(norms > 0, norms, 1))


def _projections(vectors: np.ndarray, members: np.ndarray, direction: np.ndarray) -> np.ndarray:
    """[len(members)] int16; exact in float32, because two lengths of 127 multiply to 2**14."""
    result = np.empty(len(members), np.int16)
    direction = direction.astype(np.float32)
    for start in range(0, len(members), _CHUNK):
        chunk = vectors[members[start : start + _CHUNK]].astype(np.float32)
        result[start : start + _CHUNK] = chunk @ direction
    return result
