"""The encoder of BERT, RoBERTa, DistilBERT, MPNet and ELECTRA, written for one tower.

Devlin et al. 2019 (arXiv 1810.04805) and its successors: post-LayerNorm layers. What a family adds
or leaves out are fields of its architecture (`Architecture.has`). Rows are packed: attention stays
inside a sentence (`segments`), and the model does not know how rows were filled. Crossed layers
exchange values with the neighbouring tower over the mapped axis "tower" (see `towers.py`, which
binds it).
"""

from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.models import lean
from jtcse_jax.models.activations import activation
from jtcse_jax.models.dropout import dropout, random_masks, site_key
from jtcse_jax.models.parts import TOWER_AXIS, dense, embed, layer_norm, look_up, weights
from jtcse_jax.models.relative import BUCKETS, distance_buckets


class Encoder(nnx.Module):
    """Embeddings, layers and pooler of one tower."""

    feed_forward_products = 2  #: products with a matrix [hidden_size, intermediate_size] in a layer

    def __init__(
        self,
        architecture: Architecture,
        *,
        dropout: float = 0.0,
        attention_dropout: float = 0.0,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.dtype = dtype
        self.embeddings = Embeddings(architecture, dropout, dtype, rngs)
        self.layers = nnx.List(
            Layer(architecture, dropout, attention_dropout, dtype, rngs)
            for _ in range(architecture.num_layers)
        )
        relative = architecture.has_relative_bias
        self.relative = embed(BUCKETS, architecture.num_heads, rngs) if relative else None
        # In float32: it reads only one vector per sentence, and the modulus loss uses its norm.
        self.pooler = dense(architecture.hidden_size, architecture.hidden_size, jnp.float32, rngs)

    def __call__(
        self,
        tokens: Array,
        positions: Array,
        segments: Array,
        *,
        key: Array | None = None,
        cross: Cross | None = None,
        places: Array | None = None,
    ) -> tuple[Array, Array]:
        """Last hidden states of the plain and the crossed stream, each [R, P, D] in `dtype`.

        Args:
          tokens, positions, segments: [R, P] int32, as in `Batch`.
          key: dropout key of this tower and step; None means no dropout.
          cross: cross-attention with the neighbouring tower. Without it, or without a crossed
            layer, both results are the plain stream; in mode "main" both are the crossed one.
          places: [R, C] int32, positions in the rows; if given, only their states are returned,
            [R, C, D], and the last layer computes less.
        """
        states = self.states(tokens, positions, segments, key=key, cross=cross, places=places)
        return deque(states, maxlen=1).pop()

    def states(
        self,
        tokens: Array,
        positions: Array,
        segments: Array,
        *,
        key: Array | None = None,
        cross: Cross | None = None,
        places: Array | None = None,
    ) -> Iterator[tuple[Array, Array]]:
        """The two streams, each [R, P, D], after the embeddings and then after each layer.

        Args as in `__call__`.
        """
        num_layers = len(self.layers)
        interval = cross.interval(num_layers) if cross else None
        beside = cross is not None and interval is not None and cross.mode == "side"
        allowed = self.allowed(positions, segments)
        # [R, P, D], or [2, R, P, D] (plain first) if a crossed stream runs beside the plain one:
        # the weights are the same, and one product for both is faster than two.
        hidden = self.embeddings(tokens, positions, key=site_key(key, 0))
        yield hidden, hidden
        for number, layer in enumerate(self.layers, start=1):
            if beside and number == interval:
                hidden = jnp.stack([hidden, hidden])
            if places is not None and number == num_layers:
                allowed = self.allowed(positions, segments, places)
            exchange = cross.exchange if cross and interval and number % interval == 0 else None
            hidden = _run_layer(
                *nnx.split(layer),
                hidden,
                allowed(number),
                site_key(key, number),
                places if number == num_layers else None,
                exchange=exchange,
            )
            if number == num_layers:
                hidden = self.finish(hidden)
            yield (hidden[0], hidden[1]) if hidden.ndim == 4 else (hidden, hidden)

    def allowed(
        self, positions: Array, segments: Array, places: Array | None = None
    ) -> Callable[[int], Any]:
        """What each layer, by its number from 1, must know of the pairs of queries and keys.

        [R, 1, Q, P] bool, from `same_sentence`; with a relative bias [R, H, Q, P] float32 to add to
        the scores, which is lowest between sentences. Queries are all positions, or `places`.
        """
        asking = segments if places is None else jnp.take_along_axis(segments, places, axis=1)
        allowed = same_sentence(asking, segments)
        if self.relative is not None:
            from_ = positions if places is None else jnp.take_along_axis(positions, places, axis=1)
            distances = positions[:, None, :] - from_[:, :, None]
            buckets = distance_buckets(distances)
            bias = jnp.moveaxis(look_up(self.relative, buckets), -1, 1)
            allowed = jnp.where(allowed, bias, lean.FORBIDDEN)
        return lambda number: allowed

    def finish(self, hidden: Array) -> Array:
        """The encoder's output from the states after the last layer."""
        return hidden

    def pool(self, sentence_vectors: Array) -> Array:
        """Pooler output tanh(W h + b), float32, of vectors [..., D]."""
        return jnp.tanh(self.pooler(sentence_vectors.astype(jnp.float32)))


class Embeddings(nnx.Module):
    """Sum of token, position and token-type embeddings, then LayerNorm, dropout and projection."""

    def __init__(self, architecture: Architecture, dropout: float, dtype, rngs: nnx.Rngs):
        self.offset = architecture.position_offset
        self.dropout = dropout
        self.dtype = dtype
        size, hidden_size = architecture.embedding_width, architecture.hidden_size
        self.word = embed(architecture.vocab_size, size, rngs)
        self.position = embed(architecture.max_positions, size, rngs)
        types, has_types = architecture.type_vocab_size, architecture.has("type_vocab_size")
        self.token_type = embed(types, size, rngs) if has_types else None
        self.norm = layer_norm(architecture, jnp.float32, rngs, size=size)
        self.project = dense(size, hidden_size, dtype, rngs) if size != hidden_size else None

    def __call__(self, tokens: Array, positions: Array, *, key: Array | None) -> Array:
        """Hidden states [R, P, D] in the compute dtype, from [R, P] int32."""
        summed = look_up(self.word, tokens) + look_up(self.position, positions + self.offset)
        if self.token_type is not None:
            summed += self.token_type.embedding[0]
        (kept,) = random_masks(key, 1, (summed.shape, self.dropout))
        hidden = dropout(self.norm(summed).astype(self.dtype), self.dropout, kept)
        return hidden if self.project is None else self.project(hidden)


class Layer(nnx.Module):
    """Self-attention and feed-forward, each followed by dropout, residual and LayerNorm."""

    def __init__(
        self,
        architecture: Architecture,
        dropout: float,
        attention_dropout: float,
        dtype,
        rngs: nnx.Rngs,
    ):
        size, inner = architecture.hidden_size, architecture.intermediate_size
        self.dropout = dropout
        self.attention = Attention(architecture, attention_dropout, dtype, rngs)
        self.attention_norm = layer_norm(architecture, dtype, rngs)
        self.intermediate = dense(size, inner, dtype, rngs)
        self.output = dense(inner, size, dtype, rngs)
        self.output_norm = layer_norm(architecture, dtype, rngs)
        self.activation = activation(architecture.activation)

    def __call__(
        self,
        hidden: Array,
        allowed: Array,
        *,
        key: Array | None,
        exchange: str | None = None,
        places: Array | None = None,
    ) -> Array:
        """Hidden states [..., R, P, D] from [..., R, P, D], or only those of `places` [R, C].

        `allowed` is from `Encoder.allowed`; `exchange` as in `Attention`.
        """
        asking = hidden
        if places is not None:
            where = places.reshape(*(1,) * (hidden.ndim - 3), *places.shape, 1)
            asking = jnp.take_along_axis(hidden, where, axis=-2)
        rows = hidden.shape[:-2]
        probs_shape = (*rows, self.attention.num_heads, asking.shape[-2], hidden.shape[-2])
        site = asking.shape, self.dropout
        kept = random_masks(key, len(rows), (probs_shape, self.attention.dropout), site, site)
        context = self.attention(asking, hidden, allowed, kept=kept[0], exchange=exchange)
        kernel, bias = weights(self.attention.output, hidden.dtype)
        attended = lean.product(context, kernel)
        hidden = self._add_norm(self.attention_norm, attended, bias, asking, kept[1])
        kernel, bias = weights(self.intermediate, hidden.dtype)
        inner = lean.product(hidden, kernel)
        kernel, output_bias = weights(self.output, hidden.dtype)
        output = lean.activated_dense(self.activation, inner, bias, kernel)
        return self._add_norm(self.output_norm, output, output_bias, hidden, kept[2])

    def probabilities(self, hidden: Array, allowed: Array) -> Array:
        """Attention of this tower's queries to its keys, [R, H, P, P] float32, without dropout."""
        return self.attention.probabilities(hidden, hidden, allowed).astype(jnp.float32)

    def _add_norm(
        self, norm: nnx.LayerNorm, x: Array, bias: Array | None, residual: Array, kept: Array | None
    ) -> Array:
        """LayerNorm(residual + dropout(x + bias)), for a product x of a layer with this bias."""
        assert norm.scale is not None and norm.bias is not None  # `layer_norm` makes both
        norm_weights = norm.scale[...], norm.bias[...]
        return lean.dropout_add_norm(
            x, bias, residual, *norm_weights, kept, self.dropout, norm.epsilon
        )


@partial(jax.jit, static_argnames=("graph", "exchange"))
def _run_layer(graph, params, hidden, allowed, key, places, *, exchange: str | None) -> Array:
    """`Layer.__call__`, jitted so that equal layers are traced once and not twelve times."""
    params, hidden = lean.gradients_in_turn(params, hidden)
    layer = nnx.merge(graph, params)
    return layer(hidden, allowed, key=key, exchange=exchange, places=places)


class Attention(nnx.Module):
    """Multi-head attention inside each sentence; values or probabilities may be exchanged."""

    def __init__(self, architecture: Architecture, dropout: float, dtype, rngs: nnx.Rngs):
        size = architecture.hidden_size
        self.num_heads = architecture.num_heads
        self.dropout = dropout
        self.query = dense(size, size, dtype, rngs)
        self.key = dense(size, size, dtype, rngs)
        self.value = dense(size, size, dtype, rngs)
        self.output = dense(size, size, dtype, rngs)

    def __call__(
        self,
        asking: Array,
        hidden: Array,
        allowed: Any,
        *,
        kept: Array | None,
        exchange: str | None,
    ) -> Array:
        """Context [..., R, Q, D] of the query states, over all states of their rows.

        It is that of all heads, before the output layer, which the caller applies.

        Args:
          asking: [..., R, Q, D], the states that give the queries.
          hidden: [..., R, P, D], the states that give the keys and values.
          allowed: from `Encoder.allowed`.
          kept: which probabilities dropout keeps, or None.
          exchange: "value" or "probs" takes those of the next tower; of two streams
            [2, R, ...], only the second exchanges.
        """
        query, keys, value = self._projected(asking, hidden)
        probs = self._probs(query, keys, allowed)
        if exchange == "value":
            value = exchanged(value)
        elif exchange == "probs":
            probs = exchanged(probs)
        context: Array = lean.weighted_values(probs, value, kept, self.dropout)
        return context.swapaxes(-3, -2).reshape(asking.shape)

    def probabilities(self, asking: Array, hidden: Array, allowed: Any) -> Array:
        """[..., R, H, Q, P] in the compute dtype, without dropout; args as in `__call__`."""
        query, keys, _ = self._projected(asking, hidden)
        return self._probs(query, keys, allowed)

    def _probs(self, query: Array, keys: Array, allowed: Any) -> Array:
        return lean.attention_probs(query, keys, allowed)

    def _projected(self, asking: Array, hidden: Array) -> list[Array]:
        """Queries, keys and values of all heads: [..., R, H, Q, d], and twice [..., R, H, P, d]."""
        query, *others = (
            weights(layer, hidden.dtype) for layer in (self.query, self.key, self.value)
        )
        if asking is hidden:
            each = lean.joint_dense(hidden, query, *others)
        else:
            each = [*lean.joint_dense(asking, query), *lean.joint_dense(hidden, *others)]
        return [lean.split_heads(x, self.num_heads) for x in each]


def same_sentence(asking: Array, segments: Array) -> Array:
    """[R, 1, Q, P] bool: query and key are in one sentence, by segments [R, Q] and [R, P]."""
    return asking[:, None, :, None] == segments[:, None, None, :]


def exchanged(x: Array) -> Array:
    """x of the next tower; of two streams [2, R, ...] only the second is exchanged."""
    if x.ndim == 5:
        return jnp.stack([x[0], from_next_tower(x[1])])
    return from_next_tower(x)


def from_next_tower(x: Array) -> Array:
    """Tower i receives the array of tower (i + 1) mod K."""
    towers = jax.lax.axis_size(TOWER_AXIS)
    return jax.lax.ppermute(x, TOWER_AXIS, [((i + 1) % towers, i) for i in range(towers)])
