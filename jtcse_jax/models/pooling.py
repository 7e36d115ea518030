"""From the last hidden states of packed rows to one vector per sentence.

The poolings are those of sentence-transformers, under its names. All but the maximum are weighted
sums over a sentence's tokens.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jtcse_jax.architecture import Pooling


def pool(
    pooling: Pooling, hidden: Array, segments: Array, positions: Array, slots: int, skipped: int = 0
) -> Array:
    """One vector for each of the `slots` sentences of each row, [R, C, D] float32.

    Args:
      pooling: how the states of a sentence become one vector.
      hidden: [R, P, D], the last hidden states.
      segments: [R, P] int32, as in `Batch`.
      positions: [R, P] int32, as in `Batch`.
      slots: C; vectors of slots without a sentence are zero.
      skipped: number of tokens at the start of each sentence that are left out.
    """
    hidden = hidden.astype(jnp.float32)
    member = segments[..., None] == 1 + jnp.arange(slots)  # [R, P, C]
    places = positions[..., None]
    taken = member & (places >= skipped)
    if pooling == "max":
        largest = jnp.where(taken[..., None], hidden[:, :, None], -jnp.inf).max(axis=1)
        return jnp.where(taken.any(axis=1)[..., None], largest, 0)
    if pooling == "cls":
        # As in sentence-transformers, a sentence of skipped tokens only has its [CLS].
        weights = member & (places == jnp.where(taken.any(axis=1, keepdims=True), skipped, 0))
    elif pooling == "lasttoken":
        weights = member & (places == member.sum(axis=1, keepdims=True) - 1)
    elif pooling == "weightedmean":
        weights = taken * (places + 1)
    else:
        weights = taken
    weights = weights.astype(jnp.float32)
    sums = jnp.einsum("rpc,rpd->rcd", weights, hidden, precision=jax.lax.Precision.HIGHEST)
    divisor = jnp.maximum(weights.sum(axis=1), 1)[..., None]
    return sums / (jnp.sqrt(divisor) if pooling == "mean_sqrt_len_tokens" else divisor)
