"""The operations with a backward pass of their own, against jax's derivative of the plain ones."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from scipy.special import ndtr

from jtcse_jax.models import lean
from jtcse_jax.models.dropout import dropout
from jtcse_jax.models.lean import (
    activated_dense,
    attention_probs,
    dropout_add_norm,
    gelu,
    gradients_in_turn,
    joint_dense,
    weighted_values,
)

EPSILON = 1e-12


@pytest.fixture(params=["GPU", "elsewhere"])
def form(request, monkeypatch):
    """Computes with each form of the operations that have another one on a GPU."""
    chosen = ["GPU", "elsewhere"].index(request.param)
    monkeypatch.setattr(lean, "_on_gpu", lambda *args: args[chosen](*args[2:]))


def plain(x, x_bias, residual, scale, bias, mask, rate):
    norm = nnx.LayerNorm(x.shape[-1], epsilon=EPSILON, use_fast_variance=False, rngs=nnx.Rngs(0))
    norm.scale[...], norm.bias[...] = scale, bias
    return norm(residual + dropout(x + x_bias, rate, mask))


def drawn(shape=(3, 5, 8)):
    keys = iter(jax.random.split(jax.random.key(0), 7))
    x, residual, wanted = (jax.random.normal(next(keys), shape) for _ in range(3))
    residual = residual.at[..., 2].add(40)  # one large channel, as in BERT
    x_bias, scale, bias = (jax.random.normal(next(keys), shape[-1:]) for _ in range(3))
    return x, x_bias, residual, scale, bias, jax.random.bernoulli(next(keys), 0.7, shape), wanted


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_dropout_add_norm_has_the_value_and_gradient_of_its_parts(rate):
    *arrays, mask, wanted = drawn()

    def loss(operation):
        return lambda *arrays: (operation(*arrays) * wanted).sum()

    ours = loss(lambda *arrays: dropout_add_norm(*arrays, mask, rate, EPSILON))
    theirs = loss(lambda *arrays: plain(*arrays, mask, rate))
    found = jax.value_and_grad(ours, range(5))(*arrays)
    expected = jax.value_and_grad(theirs, range(5))(*arrays)
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=2e-5)


def test_without_a_mask_nothing_is_dropped():
    *arrays, mask, wanted = drawn()
    found = dropout_add_norm(*arrays, None, 0.3, EPSILON)
    np.testing.assert_allclose(found, plain(*arrays, mask, 0.0), rtol=1e-5, atol=1e-5)
    mapped = jax.vmap(lambda *arrays: dropout_add_norm(*arrays, None, 0.3, EPSILON))
    stacked = mapped(*(jnp.stack([array, 2 * array]) for array in arrays))
    np.testing.assert_allclose(stacked[0], found, rtol=1e-5, atol=1e-5)


@pytest.mark.usefixtures("form")
def test_in_bfloat16_it_stays_near_float32():
    *arrays, mask, wanted = drawn((4, 6, 64))

    def gradient(dtype):
        x, x_bias, residual, scale, bias = arrays
        residual = residual.at[..., 2].add(-40)

        def loss(*arrays):
            out = dropout_add_norm(*arrays, mask, 0.1, EPSILON)
            assert out.dtype == dtype
            return (out.astype(jnp.float32) * wanted).sum()

        low = (each.astype(dtype) for each in (x, x_bias, residual))
        return jax.grad(loss, range(5))(*low, scale, bias)

    found = gradient(jnp.bfloat16)
    assert [each.dtype for each in found] == 3 * [jnp.bfloat16] + 2 * [jnp.float32]
    for low, high in zip(found, gradient(jnp.float32), strict=True):
        error = np.linalg.norm(low.astype(jnp.float32) - high) / np.linalg.norm(high)
        assert error < 0.01


def test_gelu_has_the_value_and_derivatives_of_the_normal_distribution():
    x = np.linspace(-12, 12, 2001)
    wanted = np.cos(x)
    values = x * ndtr(x)
    slopes = ndtr(x) + x * np.exp(-(x**2) / 2) / np.sqrt(2 * np.pi)
    for dtype, error in ((jnp.float32, 2e-6), (jnp.bfloat16, 0.05)):
        found, back = jax.vjp(gelu, jnp.asarray(x, dtype))
        (gradient,) = back(jnp.asarray(wanted, dtype))
        assert found.dtype == gradient.dtype == dtype
        np.testing.assert_allclose(found.astype(jnp.float32), values, atol=error)
        np.testing.assert_allclose(gradient.astype(jnp.float32), slopes * wanted, atol=error)


def test_activated_dense_has_the_value_and_gradient_of_its_parts_and_keeps_only_x():
    keys = iter(jax.random.split(jax.random.key(2), 4))
    x, bias, kernel, wanted = (
        jax.random.normal(next(keys), shape) for shape in ((2, 5, 8), (8,), (8, 4), (2, 5, 4))
    )

    def plain_dense(x, bias, kernel):
        return jax.nn.gelu(x + bias, approximate=False) @ kernel

    def found(dense):
        return jax.value_and_grad(lambda *arrays: (dense(*arrays) * wanted).sum(), (0, 1, 2))(
            x, bias, kernel
        )

    ours, theirs = found(partial(activated_dense, gelu)), found(plain_dense)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)
    _, back = jax.vjp(partial(activated_dense, gelu), x, bias, kernel)
    kept = [leaf for leaf in jax.tree.leaves(back) if leaf.shape == x.shape]
    assert len(kept) == 1 and kept[0] is x


def drawn_layers():
    """x for three layers, their kernels and biases, and a gradient of their results."""
    keys = iter(jax.random.split(jax.random.key(3), 4))
    shapes = (2, 5, 8), (3, 8, 4), (3, 4), (3, 2, 5, 4)
    return [jax.random.normal(next(keys), shape) for shape in shapes]


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype, tolerance", [(jnp.float32, 1e-5), (jnp.bfloat16, 0.02)])
@pytest.mark.parametrize("has_bias", [True, False])
def test_joint_dense_has_the_values_and_gradients_of_single_layers(dtype, tolerance, has_bias):
    *arrays, wanted = drawn_layers()

    def joint(x, kernels, biases):
        return joint_dense(x, *zip(kernels, biases if has_bias else [None] * 3, strict=True))

    def single(x, kernels, biases):
        return jnp.einsum("rpd,kde->krpe", x, kernels) + biases[:, None, None] * has_bias

    def found(denses, dtype):
        def outputs(*arrays):
            each = jnp.stack(denses(*(array.astype(dtype) for array in arrays)))
            assert each.dtype == dtype
            return each.astype(jnp.float32)

        values, back = jax.vjp(outputs, *arrays)
        return [values, *back(wanted)]

    for one, other in zip(found(joint, dtype), found(single, jnp.float32), strict=True):
        assert np.linalg.norm(one - other) <= tolerance * np.linalg.norm(other)


@pytest.mark.parametrize("platform, products", [("cpu", 9), ("tpu", 9), ("cuda", 3)])
def test_only_programs_for_a_gpu_join_products(platform, products):
    """Three products for the values, the gradient of x and that of the kernels, or one for each."""
    x, kernels, biases, wanted = drawn_layers()

    def values_and_gradients(x, kernels):
        values, back = jax.vjp(lambda x, *layers: joint_dense(x, *layers), x, *kernels)
        return values, back(list(wanted))

    layers = list(zip(kernels, biases, strict=True))
    lowered = jax.jit(values_and_gradients).trace(x, layers).lower(lowering_platforms=(platform,))
    assert lowered.as_text().count("stablehlo.dot_general") == products


def test_gradients_in_turn_are_the_same_and_together_on_a_tpu():
    x, (kernel, *_), _, wanted = drawn_layers()

    def loss(turn, params, x):
        params, x = turn(params, x)
        return (jnp.tanh(x @ params["kernel"]) * wanted[0]).sum()

    def found(turn):
        return jax.value_and_grad(partial(loss, turn), (0, 1))

    ours, theirs = found(gradients_in_turn), found(lambda *args: args)
    jax.tree.map(
        np.testing.assert_array_equal, ours({"kernel": kernel}, x), theirs({"kernel": kernel}, x)
    )
    traced = jax.jit(ours).trace({"kernel": kernel}, x)
    texts = [traced.lower(lowering_platforms=(name,)).as_text() for name in ("tpu", "cpu")]
    assert [text.count("optimization_barrier") for text in texts] == [1, 0]


def plain_attention(query, keys, values, allowed, mask, rate):
    scores = jnp.einsum("rhqd,rhkd->rhqk", query, keys) / np.sqrt(query.shape[-1])
    probs = jax.nn.softmax(jnp.where(allowed, scores, -1e30), axis=-1)
    return jnp.einsum("rhqk,rhkd->rhqd", dropout(probs, rate, mask), values)


def lean_attention(query, keys, values, allowed, mask, rate):
    return weighted_values(attention_probs(query, keys, allowed), values, mask, rate)


def drawn_attention():
    """Two rows with three heads and five queries, of eight positions in two sentences."""
    keys = iter(jax.random.split(jax.random.key(1), 5))
    query, wanted = (jax.random.normal(next(keys), (2, 3, 5, 4)) for _ in range(2))
    others = [jax.random.normal(next(keys), (2, 3, 8, 4)) for _ in range(2)]
    segments = jnp.array([[1, 1, 1, 1, 1, 2, 2, 2], [1, 1, 2, 2, 2, 2, 2, 2]])
    allowed = (segments[:, :5, None] == segments[:, None])[:, None]
    mask = jax.random.bernoulli(next(keys), 0.7, (2, 3, 5, 8))
    return [query, *others], allowed, mask, wanted


@pytest.mark.parametrize("rate", [0.0, 0.3])
def test_attention_has_the_value_and_gradient_of_its_parts(rate):
    arrays, allowed, mask, wanted = drawn_attention()

    def found(attention):
        return jax.value_and_grad(
            lambda *arrays: (attention(*arrays, allowed, mask, rate) * wanted).sum(), (0, 1, 2)
        )(*arrays)

    ours, theirs = found(lean_attention), found(plain_attention)
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("streams", [(), (2,)], ids=["one stream", "two streams"])
@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (2, 1, 5, 8)], ids=["each head", "all heads"])
def test_a_bias_of_the_scores_gets_its_gradient(streams, shape):
    """Also if it is broadcast: over heads, or over the plain and the crossed stream."""
    (query, keys, values), allowed, _, wanted = drawn_attention()
    bias = jnp.where(allowed, jax.random.normal(jax.random.key(2), shape), -1e30)
    # The second stream differs, so that a gradient of only one of them would be seen.
    factor = jnp.ones((*streams, 1, 1, 1, 1)).at[-1:].multiply(1.7) if streams else 1.0

    def own(query, keys, values, bias):
        return (attention_probs(query * factor, keys * factor, bias) @ values * wanted).sum()

    def plain(query, keys, values, bias):
        scores = (query * factor) @ (keys * factor).swapaxes(-1, -2) / np.sqrt(query.shape[-1])
        return (jax.nn.softmax(scores + bias, axis=-1) @ values * wanted).sum()

    ours, theirs = (
        jax.value_and_grad(loss, (0, 1, 2, 3))(query, keys, values, bias) for loss in (own, plain)
    )
    assert np.abs(theirs[1][3]).max() > 0.01
    for one, other in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


def test_attention_in_bfloat16_stays_near_float32():
    arrays, allowed, mask, wanted = drawn_attention()

    def gradient(dtype):
        def loss(*arrays):
            context = lean_attention(*arrays, allowed, mask, 0.1)
            assert context.dtype == dtype
            return (context.astype(jnp.float32) * wanted).sum()

        return jax.grad(loss, (0, 1, 2))(*(array.astype(dtype) for array in arrays))

    for low, high in zip(gradient(jnp.bfloat16), gradient(jnp.float32), strict=True):
        assert low.dtype == jnp.bfloat16
        error = np.linalg.norm(low.astype(jnp.float32) - high) / np.linalg.norm(high)
        assert error < 0.01


def test_attention_keeps_probabilities_once_for_the_backward_pass():
    arrays, allowed, mask, _ = drawn_attention()
    arrays = [array.astype(jnp.bfloat16) for array in arrays]
    _, back = jax.vjp(lambda *arrays: lean_attention(*arrays, allowed, mask, 0.1), *arrays)
    kept = {id(leaf): leaf for leaf in jax.tree.leaves(back) if leaf.shape == mask.shape}
    assert sorted(str(leaf.dtype) for leaf in kept.values()) == ["bfloat16", "bool"]
    # Queries, keys and values with all heads in one axis, which a TPU does not pad.
    shapes = sorted(leaf.shape for leaf in jax.tree.leaves(back) if leaf.shape != mask.shape)
    assert shapes == [(2, 5, 12), (2, 8, 12), (2, 8, 12)]


def test_a_tpu_does_not_keep_padded_heads_for_the_backward_pass():
    arrays, allowed, mask, wanted = drawn_attention()

    def loss(*arrays):
        return (lean_attention(*arrays, allowed, mask, 0.1) * wanted).sum()

    traced = jax.jit(jax.grad(loss, (0, 1, 2))).trace(*arrays)
    texts = [traced.lower(lowering_platforms=(name,)).as_text() for name in ("tpu", "cpu")]
    assert [text.count("optimization_barrier") for text in texts] == [3, 0]
