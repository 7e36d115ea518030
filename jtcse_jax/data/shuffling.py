"""A random order of any number of items; any part of it is computed without storing the whole.

A Feistel network (Luby and Rackoff 1988) permutes all numbers of a fixed number of bits: eight
rounds, keys from numpy's `SeedSequence`, the mixing function of splitmix64 (Steele et al. 2014). A
result outside the range of items goes through it again until it falls inside (cycle walking, Black
and Rogaway 2002). Grain's shuffle uses the same method, but computes one number at a time, 14 µs
each: half a second for a batch of 32,768.
"""

from collections.abc import Sequence

import numpy as np

_ROUNDS = 8


def shuffled(positions: np.ndarray, count: int, seed: Sequence[int]) -> np.ndarray:
    """The items at `positions` of a random order of `range(count)`.

    Args:
        positions: integers of any shape, from 0 to `count` - 1.
        count: number of items, at most 2**62.
        seed: non-negative numbers; other seeds give other orders.

    Returns:
        int64, in the shape of `positions`. All positions together give every item once.
    """
    half = max(1, ((count - 1).bit_length() + 1) // 2)  # bits in half of a number
    keys = np.random.SeedSequence(seed).generate_state(_ROUNDS, np.uint64)
    items = _permuted(np.asarray(positions, np.uint64), keys, half)
    while (outside := items >= count).any():
        items[outside] = _permuted(items[outside], keys, half)
    return items.astype(np.int64)


def _permuted(numbers: np.ndarray, keys: np.ndarray, half: int) -> np.ndarray:
    """A permutation of the numbers of 2 * `half` bits."""
    left, right = numbers >> half, numbers & (2**half - 1)
    for key in keys:
        left, right = right, left ^ (_mixed(right + key) >> (64 - half))
    return (left << half) | right


def _mixed(x: np.ndarray) -> np.ndarray:
    """64 bits, each of which depends on all of `x`."""
    x = (x ^ (x >> 30)) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> 27)) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> 31)
