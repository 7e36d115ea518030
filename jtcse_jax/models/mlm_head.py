"""The head of masked language modelling: dense, exact GELU, LayerNorm, and the tied decoder.

Devlin et al. 2019 (arXiv 1810.04805). The decoder's kernel is the token embedding; its bias is the
head's own. Used in training only.
"""

import jax
import jax.numpy as jnp
from jax import Array

from jtcse_jax.architecture import Architecture
from jtcse_jax.models.bert import initializer
from jtcse_jax.models.lean import exact
from jtcse_jax.models.towers import Params


def init(architecture: Architecture, num_towers: int, key: Array) -> Params:
    """A new head for each tower, leaves [K, ...] float32."""
    size, vocabulary = architecture.hidden_size, architecture.vocab_size
    return {
        "dense": {
            "kernel": initializer(key, (num_towers, size, size)),
            "bias": jnp.zeros((num_towers, size)),
        },
        "norm": {"scale": jnp.ones((num_towers, size)), "bias": jnp.zeros((num_towers, size))},
        "bias": jnp.zeros((num_towers, vocabulary)),
    }


def logits(head: Params, embedding: Array, hidden: Array, *, eps: float) -> Array:
    """Scores [N, V] float32 of every token of the vocabulary, for one tower.

    Args:
      head: this tower's head, as from `init` without the leading axis.
      embedding: [V, D], the tower's token embedding.
      hidden: [N, D] last hidden states; products are computed in their dtype.
      eps: epsilon of the LayerNorm.
    """
    dtype = hidden.dtype
    product = {"precision": exact(dtype), "preferred_element_type": jnp.float32}
    dense = head["dense"]
    inner = jnp.matmul(hidden, dense["kernel"].astype(dtype), **product) + dense["bias"]
    inner = _layer_norm(jax.nn.gelu(inner, approximate=False), head["norm"], eps)
    return jnp.matmul(inner.astype(dtype), embedding.astype(dtype).T, **product) + head["bias"]


def _layer_norm(x: Array, norm: Params, eps: float) -> Array:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred**2).mean(axis=-1, keepdims=True)
    return centred * jax.lax.rsqrt(variance + eps) * norm["scale"] + norm["bias"]
