"""Dropout: rates, means, and masks that depend on the key alone."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from torch_models import SMALL

from jtcse_jax.models import bert, dropout


def test_dropout_zeroes_the_share_and_keeps_the_mean():
    x = jnp.ones((400, 500))
    bits = drawn(jax.random.key(0), x)
    dropped = np.asarray(dropout.dropout(x, 0.3, bits))
    share = (dropped == 0).mean()
    assert abs(share - 0.3) < 5 * np.sqrt(0.3 * 0.7 / dropped.size)
    rate = round(0.3 * 2**16) / 2**16
    np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=1e-6)
    assert dropout.dropout(x, 0.3, None) is x and dropout.dropout(x, 0.0, bits) is x
    assert dropout.dropout(x.astype(jnp.bfloat16), 0.3, bits).dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", [0.1, 0.0175, 0.00025])
def test_dropout_in_bfloat16_keeps_the_mean(rate):
    """The values have many mantissas, so rounding to bfloat16 averages out; the scale of the
    smallest rate is lost in it."""
    x = jax.random.uniform(jax.random.key(1), (1000, 1000), minval=1, maxval=2)
    x = x.astype(jnp.bfloat16)
    kept = jnp.full(x.shape, 2**16 - 1, jnp.uint16)
    scaled = dropout.dropout(x, rate, kept)
    assert scaled.dtype == jnp.bfloat16
    scale = (np.asarray(scaled, np.float64) / np.asarray(x, np.float64)).mean()
    assert abs(scale - 1 / (1 - rate)) < 5e-4


def test_the_smallest_dropout_of_a_config_zeroes_some():
    x = jnp.ones(2**16)
    bits = jnp.arange(2**16, dtype=jnp.uint16)
    assert (dropout.dropout(x, 7.63e-6, bits) == 0).sum() == 1


def drawn(key, x):
    (bits,) = dropout.random_bits(key, 1, x.shape)
    return bits


def test_random_bits_of_one_draw_are_uniform_and_independent():
    shapes = [(3, 40, 41), (3, 999), (3, 7, 11, 13)]
    bits = dropout.random_bits(jax.random.key(0), 1, *shapes)
    assert [each.shape for each in bits] == shapes and bits[0].dtype == jnp.uint16
    flat = np.concatenate([np.asarray(each).ravel() for each in bits]).astype(np.float64)
    # Mean and neighbours' correlation of a uniform distribution, five deviations of each wide.
    assert abs(flat.mean() / 65535 - 0.5) < 5 * np.sqrt(1 / 12 / flat.size)
    for lag in (1, 2, 40, 999):
        correlation = np.corrcoef(flat[:-lag], flat[lag:])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(flat.size)
    counts = np.bincount((flat // 4096).astype(int), minlength=16)
    expected = flat.size / 16
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
    # No bit is used twice: row by row the pieces are the draw, one behind the other.
    whole = dropout.random_bits(jax.random.key(0), 1, (3, flat.size // 3))[0]
    pieces = np.concatenate([np.asarray(each).reshape(3, -1) for each in bits], axis=1)
    np.testing.assert_array_equal(pieces, whole)
    assert dropout.random_bits(None, 1, *shapes) == [None] * 3


@pytest.mark.parametrize("streams", [(), (2,)])
def test_random_bits_of_a_row_do_not_depend_on_the_rows_after_it(streams):
    """The number of devices decides how many fillers a batch ends in."""
    few, more = (
        dropout.random_bits(jax.random.key(0), len(streams) + 1, (*streams, rows, 7, 3))[0]
        for rows in (6, 8)
    )
    np.testing.assert_array_equal(few, more[..., :6, :, :])
    if streams:
        assert (few[0] != few[1]).mean() > 0.99


def rows_of_two():
    tokens = np.random.default_rng(0).integers(0, 30, (2, 12)).astype(np.int32)
    positions = np.tile(np.arange(6, dtype=np.int32), (2, 2))
    return tokens, positions, np.repeat([[1, 2]], 6, axis=1).repeat(2, axis=0).astype(np.int32)


@pytest.mark.parametrize("rates", [{"dropout": 0.2}, {"attention_dropout": 0.2}])
def test_dropout_is_drawn_from_the_key_alone(rates):
    encoder = bert.Encoder(SMALL, rngs=nnx.Rngs(1), **rates)
    plain = bert.Encoder(SMALL, rngs=nnx.Rngs(1))(*rows_of_two())[0]
    run = jax.jit(lambda key: encoder(*rows_of_two(), key=key)[0])
    np.testing.assert_array_equal(encoder(*rows_of_two())[0], plain)
    np.testing.assert_array_equal(run(jax.random.key(0)), run(jax.random.key(0)))
    assert np.abs(run(jax.random.key(0)) - run(jax.random.key(1))).max() > 1e-3
    assert np.abs(run(jax.random.key(0)) - plain).max() > 1e-3


def test_embeddings_and_layers_draw_different_masks():
    keys = [dropout.site_key(jax.random.key(0), layer) for layer in range(4)]
    masks = {bytes(np.asarray(drawn(key, jnp.ones((1, 64))))) for key in keys}
    assert len(masks) == 4


def test_attention_dropout_keeps_the_mean():
    """The context is linear in the probabilities, so that its mean is that without dropout."""
    attention = bert.Encoder(SMALL, attention_dropout=0.4, rngs=nnx.Rngs(2)).layers[0].attention
    hidden = jax.random.normal(jax.random.key(3), (1, 6, 16))
    same = jnp.ones((1, 1, 6, 6), bool)
    keys = jax.random.split(jax.random.key(4), 2000)

    def context(key):
        (bits,) = dropout.random_bits(key, 1, (1, attention.num_heads, 6, 6))
        return attention(hidden, hidden, same, bits=bits, exchange=None)

    contexts = jax.vmap(context)(keys)
    plain = attention(hidden, hidden, same, bits=None, exchange=None)
    error = contexts.std(axis=0) / np.sqrt(len(keys))
    assert (contexts.std(axis=0) > 0).all()
    assert (np.abs(contexts.mean(axis=0) - plain) < 5 * error).all()


def test_layer_dropout_acts_on_attention_and_on_feed_forward():
    """With one of the two branches zeroed, the other still varies with the key."""
    same = jnp.ones((1, 1, 6, 6), bool)
    hidden = jax.random.normal(jax.random.key(3), (1, 6, 16))
    for silent in ("attention", "feed_forward"):
        layer = bert.Encoder(SMALL, dropout=0.5, rngs=nnx.Rngs(2)).layers[0]
        dense = layer.attention.output if silent == "attention" else layer.output
        dense.kernel[...] = jnp.zeros_like(dense.kernel[...])
        first, second = (layer(hidden, same, key=jax.random.key(seed)) for seed in (0, 1))
        assert np.abs(first - second).max() > 1e-3
