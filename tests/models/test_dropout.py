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
    kept = drawn(jax.random.key(0), x, 0.3)
    dropped = np.asarray(dropout.dropout(x, 0.3, kept))
    share = (dropped == 0).mean()
    assert abs(share - 0.3) < 5 * np.sqrt(0.3 * 0.7 / dropped.size)
    rate = round(0.3 * 2**16) / 2**16
    np.testing.assert_allclose(dropped[dropped != 0], 1 / (1 - rate), rtol=1e-6)
    assert dropout.dropout(x, 0.3, None) is x and dropout.dropout(x, 0.0, kept) is x
    assert dropout.dropout(x.astype(jnp.bfloat16), 0.3, kept).dtype == jnp.bfloat16


@pytest.mark.parametrize("rate", [0.1, 0.0175, 0.00025])
def test_dropout_in_bfloat16_keeps_the_mean(rate):
    """The values have many mantissas, so rounding to bfloat16 averages out; the scale of the
    smallest rate is lost in it."""
    x = jax.random.uniform(jax.random.key(1), (1000, 1000), minval=1, maxval=2)
    x = x.astype(jnp.bfloat16)
    scaled = dropout.dropout(x, rate, jnp.full(x.shape, True))
    assert scaled.dtype == jnp.bfloat16
    scale = (np.asarray(scaled, np.float64) / np.asarray(x, np.float64)).mean()
    assert abs(scale - 1 / (1 - rate)) < 5e-4


@pytest.fixture(params=["tpu", "default"])
def device(request, monkeypatch):
    """Masks are drawn as on this device."""
    chosen = lambda *args, **forms: forms[request.param](*args)  # noqa: E731
    monkeypatch.setattr(jax.lax, "platform_dependent", chosen)


@pytest.mark.usefixtures("device")
def test_masks_have_the_rates_of_their_sites_and_are_independent():
    rows, heads, length, rates = 4, 3, 40, (0.1, 0.5, 0.5)
    shapes = [(2, rows, heads, length, length), *2 * [(2, rows, length, heads * length)]]
    masks = dropout.random_masks(jax.random.key(3), 2, *zip(shapes, rates, strict=True))
    assert [mask.shape for mask in masks] == shapes
    flat = [np.asarray(mask).reshape(-1, length) for mask in masks]
    for mask, rate in zip(flat, rates, strict=True):
        assert abs(mask.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / mask.size)
    _, one, two = flat
    streams = np.asarray(masks[1])
    for first, second in ((one, two), streams, (one[1:], one[:-1]), (one[:, 1:], one[:, :-1])):
        assert abs((first == second).mean() - 0.5) < 5 * np.sqrt(0.25 / first.size)


@pytest.mark.usefixtures("device")
def test_masks_of_a_row_do_not_depend_on_the_rows_after_it():
    few, more = (
        dropout.random_masks(jax.random.key(0), 2, ((2, n, 3, 6), 0.5), ((2, n, 6), 0.5))
        for n in (6, 8)
    )
    for one, other in zip(few, more, strict=True):
        np.testing.assert_array_equal(one, other[:, :6])


def test_a_tpu_draws_each_mask_in_its_shape():
    def masks(key):
        return dropout.random_masks(key, 1, ((2, 3, 8, 8), 0.1), ((2, 8, 24), 0.1))

    traced = jax.jit(masks).trace(jax.random.key(0))
    texts = [traced.lower(lowering_platforms=(name,)).as_text() for name in ("tpu", "cpu")]
    assert ["tensor<2x3x8x8xui32>" in text for text in texts] == [True, False]


def drawn(key, x, rate=0.5):
    (kept,) = dropout.random_masks(key, 1, (x.shape, rate))
    return kept


def test_an_entry_is_kept_if_its_bits_are_not_below_the_rate(monkeypatch):
    """All values of 16 bits, in two rows; the smallest rate that a config takes drops one."""
    every = np.arange(2**16, dtype=np.uint32).reshape(2, -1)
    words = jnp.asarray(every[:, ::2] | every[:, 1::2] << 16)  # the lower half first
    monkeypatch.setattr(dropout, "random_bits", lambda key, leading, rest: words)
    shapes = [(2, 2**14), (2, 2**7, 2**6), (2, 2**13 - 1)]  # the last has half a word left over
    key = jax.random.key(0)
    masks = dropout.random_masks(key, 1, *zip(shapes, (7.63e-6, 0.75, 0.0), strict=True))
    assert [mask.shape for mask in masks] == shapes and masks[0].dtype == bool
    first, second, third = (np.asarray(mask).reshape(2, -1) for mask in masks)
    np.testing.assert_array_equal(first, every[:, : 2**14] >= 1)
    np.testing.assert_array_equal(second, every[:, 2**14 : 2**14 + 2**13] >= 0.75 * 2**16)
    assert third.all() and third.shape == (2, 2**13 - 1)
    assert dropout.random_masks(None, 1, ((2, 3), 0.1), ((2, 5), 0.1)) == [None] * 2


def test_random_bits_are_uniform_and_independent():
    words = np.asarray(dropout.random_bits(jax.random.key(0), (3,), (1821,)))
    assert words.shape == (3, 1821) and words.dtype == np.uint32
    flat = words.view(np.uint16).ravel().astype(np.float64)
    # Mean and neighbours' correlation of a uniform distribution, five deviations of each wide.
    assert abs(flat.mean() / 65535 - 0.5) < 5 * np.sqrt(1 / 12 / flat.size)
    for lag in (1, 2, 40, 999):
        correlation = np.corrcoef(flat[:-lag], flat[lag:])[0, 1]
        assert abs(correlation) < 5 / np.sqrt(flat.size)
    counts = np.bincount((flat // 4096).astype(int), minlength=16)
    expected = flat.size / 16
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()


@pytest.mark.parametrize("streams", [(), (2,)])
def test_random_bits_of_a_row_do_not_depend_on_the_rows_after_it(streams):
    """The number of devices decides how many fillers a batch ends in."""
    few, more = (dropout.random_bits(jax.random.key(0), (*streams, n), (21,)) for n in (6, 8))
    np.testing.assert_array_equal(few, more[..., :6, :])
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
        (kept,) = dropout.random_masks(key, 1, ((1, attention.num_heads, 6, 6), 0.4))
        return attention(hidden, hidden, same, kept=kept, exchange=None)

    contexts = jax.vmap(context)(keys)
    plain = attention(hidden, hidden, same, kept=None, exchange=None)
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
