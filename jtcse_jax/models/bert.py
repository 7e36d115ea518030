"""One encoder, BERT or RoBERTa, written for one tower.

Devlin et al. 2019 (arXiv 1810.04805) and Liu et al. 2019 (arXiv 1907.11692): post-LayerNorm
layers with exact GELU. Rows are packed: attention stays inside a sentence (`segments`), and the
model knows nothing of how rows were filled. Crossing layers exchange values with the neighbouring
tower over the mapped axis "tower" (see `towers.py`, which binds it).
"""

from collections.abc import Iterator

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from jtcse_jax.config import Architecture, Cross

TOWER_AXIS = "tower"
INITIAL_STDDEV = 0.02  # of kernels and embeddings, as in BERT
MAIN, CROSSED = 0, 1  # streams, for dropout keys


class Encoder(nnx.Module):
    """Embeddings, layers and pooler of one tower."""

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
        # In float32: it sees one vector a sentence, and the modulus loss reads its norm.
        self.pooler = dense(architecture.hidden_size, architecture.hidden_size, jnp.float32, rngs)

    def __call__(
        self,
        tokens: Array,
        positions: Array,
        segments: Array,
        *,
        key: Array | None = None,
        cross: Cross | None = None,
    ) -> tuple[Array, Array]:
        """Last hidden states of the plain and of the crossed stream, each [R, P, D] in `dtype`.

        Args:
          tokens, positions, segments: [R, P] int32, as in `Batch`.
          key: dropout key of this tower and step; None means no dropout.
          cross: cross-attention with the neighbouring tower; None or no crossed layer gives the
            plain stream twice, mode "main" the crossed stream twice.
        """
        for streams in self.states(tokens, positions, segments, key=key, cross=cross):
            last = streams
        return last

    def states(
        self,
        tokens: Array,
        positions: Array,
        segments: Array,
        *,
        key: Array | None = None,
        cross: Cross | None = None,
    ) -> Iterator[tuple[Array, Array]]:
        """The two streams, each [R, P, D], after the embeddings and then after each layer.

        Args as `__call__`.
        """
        num_layers = len(self.layers)
        interval = cross.interval(num_layers) if cross else None
        allowed = same_sentence(segments)
        main = self.embeddings(tokens, positions, key=site_key(key, MAIN, 0))
        crossed = main
        yield main, crossed
        for number, layer in enumerate(self.layers, start=1):
            exchange = cross.exchange if interval and number % interval == 0 else None
            main_key = site_key(key, MAIN, number)
            if interval is None or number < interval:
                main = crossed = layer(main, allowed, key=main_key)
            elif cross.mode == "main":
                main = crossed = layer(main, allowed, key=main_key, exchange=exchange)
            else:
                crossed_key = site_key(key, CROSSED, number)
                crossed = layer(crossed, allowed, key=crossed_key, exchange=exchange)
                main = layer(main, allowed, key=main_key)
            yield main, crossed

    def pool(self, sentence_vectors: Array) -> Array:
        """Pooler output tanh(W h + b), float32, of vectors [..., D]."""
        return jnp.tanh(self.pooler(sentence_vectors.astype(jnp.float32)))


class Embeddings(nnx.Module):
    """Sum of token, position and token-type embeddings, then LayerNorm and dropout."""

    def __init__(self, architecture: Architecture, dropout: float, dtype, rngs: nnx.Rngs):
        self.offset = architecture.position_offset
        self.dropout = dropout
        self.dtype = dtype
        size = architecture.hidden_size
        self.word = embed(architecture.vocab_size, size, rngs)
        self.position = embed(architecture.max_positions, size, rngs)
        self.token_type = embed(architecture.type_vocab_size, size, rngs)
        self.norm = layer_norm(architecture, jnp.float32, rngs)

    def __call__(self, tokens: Array, positions: Array, *, key: Array | None) -> Array:
        """Hidden states [R, P, D] in the compute dtype, from [R, P] int32."""
        summed = (
            self.word(tokens)
            + self.position(positions + self.offset)
            + self.token_type.embedding[0]
        )
        return dropout(self.norm(summed).astype(self.dtype), self.dropout, key)


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

    def __call__(
        self,
        hidden: Array,
        allowed: Array,
        *,
        key: Array | None,
        exchange: str | None = None,
    ) -> Array:
        """Hidden states [R, P, D] from [R, P, D]; `allowed` is that of `same_sentence`."""
        keys = (None,) * 3 if key is None else jax.random.split(key, 3)
        attended = self.attention(hidden, allowed, key=keys[0], exchange=exchange)
        hidden = self.attention_norm(hidden + dropout(attended, self.dropout, keys[1]))
        inner = jax.nn.gelu(self.intermediate(hidden), approximate=False)
        return self.output_norm(hidden + dropout(self.output(inner), self.dropout, keys[2]))


class Attention(nnx.Module):
    """Multi-head attention inside each sentence, with values or probabilities exchanged."""

    def __init__(self, architecture: Architecture, dropout: float, dtype, rngs: nnx.Rngs):
        size = architecture.hidden_size
        self.num_heads = architecture.num_heads
        self.dropout = dropout
        self.query = dense(size, size, dtype, rngs)
        self.key = dense(size, size, dtype, rngs)
        self.value = dense(size, size, dtype, rngs)
        self.output = dense(size, size, dtype, rngs)

    def __call__(
        self, hidden: Array, allowed: Array, *, key: Array | None, exchange: str | None
    ) -> Array:
        """Projected context [R, P, D]; `exchange` brings values or probs of the next tower."""
        query, keys, value = (
            self._heads(projection(hidden)) for projection in (self.query, self.key, self.value)
        )
        probs = attention_probs(query, keys, allowed)
        if exchange == "value":
            value = from_next_tower(value)
        elif exchange == "probs":
            probs = from_next_tower(probs)
        probs = dropout(probs, self.dropout, key).astype(value.dtype)
        context = jnp.einsum("rhqk,rkhd->rqhd", probs, value, precision=exact(hidden.dtype))
        return self.output(context.reshape(hidden.shape))

    def probabilities(self, hidden: Array, allowed: Array) -> Array:
        """What this tower's own queries give each key, [R, H, P, P] float32, without dropout."""
        query, keys = (self._heads(projection(hidden)) for projection in (self.query, self.key))
        return attention_probs(query, keys, allowed)

    def _heads(self, x: Array) -> Array:
        return x.reshape(*x.shape[:-1], self.num_heads, -1)


def attention_probs(query: Array, keys: Array, allowed: Array) -> Array:
    """softmax(Q K^T / sqrt(d)) over the allowed keys, [R, H, P, P] float32, of [R, P, H, d]."""
    # Softmax in float32: sums over a row of bf16 exponentials lose a percent.
    scores = jnp.einsum(
        "rqhd,rkhd->rhqk",
        query,
        keys,
        precision=exact(query.dtype),
        preferred_element_type=jnp.float32,
    )
    scores = jnp.where(allowed, scores * query.shape[-1] ** -0.5, -1e30)
    return jax.nn.softmax(scores, axis=-1)


def same_sentence(segments: Array) -> Array:
    """[R, 1, P, P] bool, whether query and key belong to one sentence, of segments [R, P]."""
    return segments[:, None, :, None] == segments[:, None, None, :]


def from_next_tower(x: Array) -> Array:
    """Tower i receives the array of tower (i + 1) mod K."""
    towers = jax.lax.axis_size(TOWER_AXIS)
    return jax.lax.ppermute(x, TOWER_AXIS, [((i + 1) % towers, i) for i in range(towers)])


def dropout(x: Array, rate: float, key: Array | None) -> Array:
    """x with a share `rate` of its entries zeroed and the rest scaled by 1 / (1 - rate)."""
    if key is None or rate == 0:
        return x
    keep = jax.random.bernoulli(key, 1 - rate, x.shape)
    return jnp.where(keep, x / (1 - rate), 0).astype(x.dtype)


def site_key(key: Array | None, stream: int, layer: int) -> Array | None:
    """Dropout key of one stream and layer; layer 0 is the embedding."""
    if key is None:
        return None
    return jax.random.fold_in(jax.random.fold_in(key, stream), layer)


def dense(inputs: int, outputs: int, dtype, rngs: nnx.Rngs) -> nnx.Linear:
    return nnx.Linear(
        inputs,
        outputs,
        kernel_init=initializer,
        dtype=dtype,
        precision=exact(dtype),
        rngs=rngs,
    )


def exact(dtype) -> jax.lax.Precision | None:
    """Float32 products where float32 is asked for: accelerators round the factors otherwise."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def embed(rows: int, size: int, rngs: nnx.Rngs) -> nnx.Embed:
    return nnx.Embed(rows, size, embedding_init=initializer, rngs=rngs)


def layer_norm(architecture: Architecture, dtype, rngs: nnx.Rngs) -> nnx.LayerNorm:
    # Not the fast variance E[x^2] - E[x]^2, which cancels where one channel is large, as in BERT.
    return nnx.LayerNorm(
        architecture.hidden_size,
        epsilon=architecture.layer_norm_eps,
        dtype=dtype,
        use_fast_variance=False,
        rngs=rngs,
    )


initializer = jax.nn.initializers.normal(INITIAL_STDDEV)
