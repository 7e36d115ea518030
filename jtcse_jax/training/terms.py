"""The terms of the objectives: the losses between the views and the towers of a batch."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import Array

from jtcse_jax.batch import Batch
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.models.towers import TowerOutputs, neighbours, sum_towers
from jtcse_jax.training import losses

Terms = dict[str, Array]


class Views(NamedTuple):
    """The vectors of a batch's views, as the losses take them."""

    pairs: Array  #: [..., 2B, D], the two views of each sentence interleaved
    negatives: Array | None  #: [..., mB, D], the hard negatives; None without
    mask: Array  #: [2B] bool, the pairs that exist


def split_views(vectors: Array, batch: Batch) -> Views:
    """Takes vectors [..., VB, D] of all views apart into pairs and hard negatives."""
    mask = jnp.repeat(batch.mask, 2)
    *leading, count, size = vectors.shape
    if count == len(mask):
        return Views(vectors, None, mask)
    views = vectors.reshape(*leading, len(batch.mask), -1, size)
    pairs, negatives = (
        part.reshape(*leading, -1, size) for part in (views[..., :2, :], views[..., 2:, :])
    )
    return Views(pairs, negatives, mask)


def contrast(
    x: Array,
    y: Array,
    batch: Batch,
    config: ObjectiveConfig,
    nce: Callable[..., Array] = losses.info_nce,
) -> Array:
    """NCE(x, y) of vectors [VB, D]: the pairs of x among the pairs and hard negatives of y."""
    candidates = split_views(y, batch)
    return nce(
        split_views(x, batch).pairs,
        candidates.pairs,
        temperature=config.temperature,
        mask=candidates.mask,
        negatives=candidates.negatives,
    )


def within_towers(vectors: Array, batch: Batch, config: ObjectiveConfig) -> Array:
    """L_NCE of vectors [K, VB, D]: the sum over towers of NCE(h_k, h_k)."""
    return sum((contrast(x, x, batch, config) for x in vectors), start=jnp.zeros(()))


def between_towers(
    vectors: Array, batch: Batch, config: ObjectiveConfig, *, flip: Array | None = None
) -> Array:
    """Sum over neighbours of NCE(x_i, x_j), or of NCE(x_j, x_i) if `flip` (a bool scalar)."""
    total = jnp.zeros(())
    for i, j in neighbours(len(vectors)):
        x, y = vectors[i], vectors[j]
        if flip is not None:
            x, y = jnp.where(flip, y, x), jnp.where(flip, x, y)
        total += contrast(x, y, batch, config)
    return total


def tensor_modulus(outputs: TowerOutputs, batch: Batch, config: ObjectiveConfig) -> Array:
    """L_ICTM: the sum over neighbours of T(h_i, h_j, p_i, p_j) + T(h_j, h_i, p_j, p_i)."""
    hidden, _, mask = split_views(outputs.hidden, batch)
    pooled = split_views(outputs.pooled, batch).pairs
    total = jnp.zeros(())
    for i, j in neighbours(len(hidden)):
        for a, b in ((i, j), (j, i)):
            total += losses.ictm(
                hidden[a],
                hidden[b],
                pooled[a],
                pooled[b],
                modulus_half=config.modulus_half,
                mask=mask,
            )
    return total


def health(outputs: TowerOutputs, batch: Batch) -> Terms:
    """Alignment and uniformity of the bank's embedding; for monitoring, without a gradient."""
    embedding = jax.lax.stop_gradient(sum_towers(outputs.hidden))
    pairs, _, mask = split_views(embedding, batch)
    return {
        "alignment": losses.alignment(pairs, mask=mask),
        "uniformity": losses.uniformity(pairs[0::2], mask=batch.mask),
    }
