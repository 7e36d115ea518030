"""The encoder of ModernBERT, written for one tower.

Warner et al. 2024 (arXiv 2412.13663): pre-LayerNorm layers without biases, GeGLU, rotary positions
(arXiv 2104.09864). Most layers attend to near tokens only. Positions are those inside a sentence,
so a packed row computes the same as single sentences.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
from flax import nnx
from jax import Array

from jtcse_jax.architecture import Architecture
from jtcse_jax.models import bert, lean
from jtcse_jax.models.activations import activation
from jtcse_jax.models.bert import same_sentence
from jtcse_jax.models.dropout import dropout, random_masks
from jtcse_jax.models.parts import dense, embed, layer_norm, look_up, weights


class Pairs(NamedTuple):
    """What a layer must know of queries and keys."""

    allowed: Array  #: [R, 1, Q, P] bool
    asking: Array  #: [R, 1, Q, d / 2] float32, angles by which queries are rotated
    keys: Array  #: [R, 1, P, d / 2] float32, the same for keys


class Encoder(bert.Encoder):
    """Embeddings, layers, final LayerNorm and pooler of one tower."""

    feed_forward_products = 3

    def __init__(
        self,
        architecture: Architecture,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.architecture = architecture
        self.dtype = dtype
        self.embeddings = Embeddings(architecture, dropout, dtype, rngs)
        self.layers = nnx.List(
            Layer(architecture, dropout, attention_dropout, dtype, rngs, first=number == 0)
            for number in range(architecture.num_layers)
        )
        self.final_norm = norm(architecture, rngs)
        # Like the pooler of BERT; ModernBERT itself has none.
        size = architecture.hidden_size
        self.pooler = dense(size, size, jnp.float32, rngs)

    def allowed(
        self, positions: Array, segments: Array, places: Array | None = None
    ) -> Callable[[int], Pairs]:
        """`Pairs` of each layer, by its number from 1; args as in `bert.Encoder.allowed`."""
        asking, asking_segments = positions, segments
        if places is not None:
            asking, asking_segments = (
                jnp.take_along_axis(each, places, axis=1) for each in (positions, segments)
            )
        whole = same_sentence(asking_segments, segments)
        apart = jnp.abs(asking[:, None, :, None] - positions[:, None, None, :])
        shape = self.architecture

        def pairs(allowed: Array, base: float) -> Pairs:
            channels = shape.hidden_size // shape.num_heads
            return Pairs(allowed, *(angles(each, channels, base) for each in (asking, positions)))

        wide = pairs(whole, shape.global_rope_theta)
        near = pairs(whole & (apart <= shape.local_window // 2), shape.local_rope_theta)
        return lambda number: near if (number - 1) % shape.global_every else wide

    def finish(self, hidden: Array) -> Array:
        """The final LayerNorm."""
        return self.final_norm(hidden).astype(self.dtype)


class Embeddings(nnx.Module):
    """Token embeddings, then LayerNorm and dropout."""

    def __init__(self, architecture: Architecture, dropout: float, dtype, rngs: nnx.Rngs):
        self.dropout = dropout
        self.dtype = dtype
        self.word = embed(architecture.vocab_size, architecture.hidden_size, rngs)
        self.norm = norm(architecture, rngs)

    def __call__(self, tokens: Array, positions: Array, *, key: Array | None) -> Array:
        """Hidden states [R, P, D] in the compute dtype, from [R, P] int32."""
        hidden = self.norm(look_up(self.word, tokens)).astype(self.dtype)
        (kept,) = random_masks(key, 1, (hidden.shape, self.dropout))
        return dropout(hidden, self.dropout, kept)


class Layer(nnx.Module):
    """Self-attention and gated feed-forward, each after a LayerNorm and added to its input."""

    def __init__(
        self,
        architecture: Architecture,
        dropout: float,
        attention_dropout: float,
        dtype,
        rngs: nnx.Rngs,
        *,
        first: bool,
    ):
        size, inner = architecture.hidden_size, architecture.intermediate_size
        self.dropout = dropout
        self.dtype = dtype
        self.attention_norm = None if first else norm(architecture, rngs)  # its input has one
        self.attention = Attention(architecture, attention_dropout, dtype, rngs)
        self.output_norm = norm(architecture, rngs)
        self.intermediate = dense(size, inner, dtype, rngs, use_bias=False)
        self.gate = dense(size, inner, dtype, rngs, use_bias=False)
        self.output = dense(inner, size, dtype, rngs, use_bias=False)
        self.activation = activation(architecture.activation)

    def __call__(
        self,
        hidden: Array,
        allowed: Pairs,
        *,
        key: Array | None,
        exchange: str | None = None,
        places: Array | None = None,
    ) -> Array:
        """Hidden states as in `bert.Layer.__call__`."""
        normed = self._normed(hidden)
        asking, residual = normed, hidden
        if places is not None:
            where = places.reshape(*(1,) * (hidden.ndim - 3), *places.shape, 1)
            asking, residual = (
                jnp.take_along_axis(each, where, axis=-2) for each in (normed, hidden)
            )
        rows = hidden.shape[:-2]
        probs_shape = (*rows, self.attention.num_heads, asking.shape[-2], hidden.shape[-2])
        site = asking.shape, self.dropout
        kept = random_masks(key, len(rows), (probs_shape, self.attention.dropout), site, site)
        context = self.attention(asking, normed, allowed, kept=kept[0], exchange=exchange)
        hidden = residual + dropout(self.attention.output(context), self.dropout, kept[1])
        normed = self.output_norm(hidden).astype(self.dtype)
        layers = (weights(layer, self.dtype) for layer in (self.intermediate, self.gate))
        inner, gate = lean.joint_dense(normed, *layers)
        inner = self.activation(inner) * gate
        return hidden + dropout(self.output(inner), self.dropout, kept[2])

    def probabilities(self, hidden: Array, allowed: Pairs) -> Array:
        """Attention of this tower's queries to its keys, [R, H, P, P] float32, without dropout."""
        normed = self._normed(hidden)
        return self.attention.probabilities(normed, normed, allowed).astype(jnp.float32)

    def _normed(self, hidden: Array) -> Array:
        if self.attention_norm is None:
            return hidden
        return self.attention_norm(hidden).astype(self.dtype)


class Attention(bert.Attention):
    """Attention whose queries and keys are rotated by their positions."""

    def __init__(self, architecture: Architecture, dropout: float, dtype, rngs: nnx.Rngs):
        size = architecture.hidden_size
        self.num_heads = architecture.num_heads
        self.dropout = dropout
        self.query, self.key, self.value, self.output = (
            dense(size, size, dtype, rngs, use_bias=False) for _ in range(4)
        )

    def _probs(self, query: Array, keys: Array, allowed: Pairs) -> Array:
        query, keys = rotated(query, allowed.asking), rotated(keys, allowed.keys)
        return lean.attention_probs(query, keys, allowed.allowed)


def angles(positions: Array, channels: int, base: float) -> Array:
    """[R, 1, P, channels / 2] float32: position / base^(2 i / channels) for the i-th pair."""
    powers = jnp.arange(0, channels, 2, dtype=jnp.float32) / channels
    return positions[:, None, :, None].astype(jnp.float32) / base**powers


def rotated(x: Array, by: Array) -> Array:
    """x [..., d] with channels i and i + d / 2 rotated as a pair by angle i; the dtype of x."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = jnp.cos(by), jnp.sin(by)
    turned = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return turned.astype(x.dtype)


def norm(architecture: Architecture, rngs: nnx.Rngs) -> nnx.LayerNorm:
    """A LayerNorm without bias, computed in float32."""
    return layer_norm(architecture, jnp.float32, rngs, use_bias=False)
