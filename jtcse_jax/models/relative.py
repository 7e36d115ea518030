"""The buckets of MPNet's relative positions, which are those of T5 (arXiv 1910.10683)."""

import jax.numpy as jnp
import numpy as np
from jax import Array

BUCKETS = 32  # transformers computes with this number whatever a config has
FARTHEST = 128  # from this distance on all distances share a bucket


def distance_buckets(distances: Array) -> Array:
    """The bucket, int32, of each distance from a query to a key (key - query).

    The second half of the buckets is for keys after the query. In each half the first half holds
    one distance each; the others are ranges that grow logarithmically up to 128.
    """
    apart = jnp.minimum(jnp.abs(distances), FARTHEST)
    return jnp.asarray(_one_direction())[apart] + (distances > 0) * (BUCKETS // 2)


def _one_direction() -> np.ndarray:
    """The bucket of each distance from 0 to FARTHEST."""
    count, exact = BUCKETS // 2, BUCKETS // 4
    apart = np.arange(FARTHEST + 1)
    ratio = np.log(np.maximum(apart, 1).astype(np.float32) / exact) / np.log(FARTHEST / exact)
    ranges = exact + (ratio * (count - exact)).astype(np.int32)
    return np.where(apart < exact, apart, np.minimum(ranges, count - 1)).astype(np.int32)
