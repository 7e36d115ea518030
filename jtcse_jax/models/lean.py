"""Parts of a layer with backward passes that keep little and read little.

Differentiated as written, GELU and dropout-residual-LayerNorm keep several arrays of a layer's size
for the backward pass. Here they keep one (and the mean and deviation of each vector), and compute
the rest from it again. Attention needs only its probabilities, in the compute dtype. XLA may keep
the float32 scores too; for the H100 it does.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jtcse_jax.models.dropout import dropout
from jtcse_jax.models.parts import exact

FORBIDDEN = -1e30  # score of a pair that attention must not connect


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Exact GELU x Phi(x), in the dtype of x; only x is kept for the backward pass.

    Hendrycks and Gimpel 2016 (arXiv 1606.08415).
    """
    return jax.nn.gelu(x, approximate=False)


def _gelu_backward(x: Array, gradient: Array) -> tuple[Array]:
    """The derivative is Phi(x) + x phi(x), with the normal distribution's Phi and density phi."""
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide**2) * np.float32((2 * np.pi) ** -0.5)
    derivative = 0.5 * jax.lax.erfc(-wide * np.float32(0.5**0.5)) + wide * density
    return ((gradient.astype(jnp.float32) * derivative).astype(x.dtype),)


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@partial(jax.checkpoint, static_argnums=0)
def activated_dense(
    activation: Callable[[Array], Array], x: Array, kernel: Array, bias: Array
) -> Array:
    """activation(x) W + b: [..., E] from [..., D], [D, E] and [E], all in one dtype.

    The backward pass computes the activation from x a second time instead of keeping it.
    """
    return jnp.matmul(activation(x), kernel, precision=exact(x.dtype)) + bias


@partial(jax.custom_vjp, nondiff_argnums=(5, 6))
def dropout_add_norm(
    x: Array,
    residual: Array,
    scale: Array,
    bias: Array,
    kept: Array | None,
    rate: float,
    epsilon: float,
) -> Array:
    """LayerNorm(residual + dropout(x)) over the last axis, computed in float32.

    Args:
      x, residual: [..., D] in one dtype, which the result has too.
      scale, bias: [D] float32, of the LayerNorm (arXiv 1607.06450).
      kept, rate: as in `dropout`.
      epsilon: added to the variance.
    """
    return _add_norm_forward(x, residual, scale, bias, kept, rate, epsilon)[0]


def _add_norm_forward(x, residual, scale, bias, kept, rate, epsilon) -> tuple[Array, Any]:
    # The sum is rounded to the dtype of x: that is what the backward pass reads.
    total = residual + dropout(x, rate, kept)
    wide = total.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    # Not E[x^2] - E[x]^2: it cancels if one channel is large, as in BERT.
    inverse_stddev = jax.lax.rsqrt(((wide - mean) ** 2).mean(-1, keepdims=True) + epsilon)
    normal = (wide - mean) * inverse_stddev
    return (normal * scale + bias).astype(x.dtype), (total, mean, inverse_stddev, scale, kept)


def _add_norm_backward(rate: float, epsilon: float, saved: Any, gradient: Array) -> tuple:
    total, mean, inverse_stddev, scale, kept = saved
    gradient = gradient.astype(jnp.float32)
    normal = (total.astype(jnp.float32) - mean) * inverse_stddev
    scaled = gradient * scale
    along = (scaled * normal).mean(-1, keepdims=True)
    to_total = (scaled - scaled.mean(-1, keepdims=True) - normal * along) * inverse_stddev
    to_residual = to_total.astype(total.dtype)
    to_x = dropout(to_residual, rate, kept)  # zeroes and scales a gradient as it does a value
    others = tuple(range(total.ndim - 1))
    return to_x, to_residual, (gradient * normal).sum(others), gradient.sum(others), None


dropout_add_norm.defvjp(_add_norm_forward, _add_norm_backward)


@jax.custom_vjp
def attention_probs(query: Array, keys: Array, allowed: Array) -> Array:
    """softmax(Q K^T / sqrt(d)) over the allowed keys, computed in float32.

    Returns [..., R, H, Q, P] in the dtype of the queries [..., R, H, Q, d], for keys
    [..., R, H, P, d]. `allowed` is bool, or a float32 bias that is added to the scores; it
    broadcasts to them.
    """
    # Softmax in float32: sums over a row of bf16 exponentials lose a percent.
    scores = _product("...qd,...kd->...qk", query, keys, jnp.float32) * query.shape[-1] ** -0.5
    biased = allowed.dtype != jnp.bool_
    scores = scores + allowed if biased else jnp.where(allowed, scores, FORBIDDEN)
    return jax.nn.softmax(scores, axis=-1).astype(query.dtype)


def _probs_forward(query: Array, keys: Array, allowed: Array) -> tuple[Array, Any]:
    probs = attention_probs(query, keys, allowed)
    bias = None if allowed.dtype == jnp.bool_ else allowed
    return probs, (query, keys, probs, bias)


def _probs_backward(kept: Any, gradient: Array) -> tuple[Array, Array, Array | None]:
    query, keys, probs, bias = kept
    wide, gradient = probs.astype(jnp.float32), gradient.astype(jnp.float32)
    to_scores = wide * (gradient - (wide * gradient).sum(-1, keepdims=True))
    to_bias = None if bias is None else _summed_to(to_scores, bias.shape)
    to_products = (to_scores * query.shape[-1] ** -0.5).astype(query.dtype)
    to_query = _product("...qk,...kd->...qd", to_products, keys)
    return to_query, _product("...qk,...qd->...kd", to_products, query), to_bias


def _summed_to(x: Array, shape: tuple[int, ...]) -> Array:
    """The gradient of an array of this shape that was broadcast to that of x."""
    x = x.sum(axis=tuple(range(x.ndim - len(shape))))
    axes = tuple(axis for axis, size in enumerate(shape) if size == 1)
    return x.sum(axis=axes, keepdims=True)


attention_probs.defvjp(_probs_forward, _probs_backward)


@partial(jax.custom_vjp, nondiff_argnums=(3,))
def weighted_values(probs: Array, values: Array, kept: Array | None, rate: float) -> Array:
    """dropout(probs) V: [..., Q, d] from [..., Q, P] and [..., P, d]; kept, rate as in `dropout`.

    Only the three arrays are kept for the backward pass, and those of `attention_probs` are the
    same probabilities.
    """
    return _product("...qk,...kd->...qd", dropout(probs, rate, kept), values)


def _values_forward(probs, values, kept, rate) -> tuple[Array, Any]:
    return weighted_values(probs, values, kept, rate), (probs, values, kept)


def _values_backward(rate: float, saved: Any, gradient: Array) -> tuple[Array, Array, None]:
    probs, values, kept = saved
    to_dropped = _product("...qd,...kd->...qk", gradient, values)
    to_values = _product("...qk,...qd->...kd", dropout(probs, rate, kept), gradient)
    return dropout(to_dropped, rate, kept), to_values, None


weighted_values.defvjp(_values_forward, _values_backward)


def _product(equation: str, one: Array, other: Array, dtype: Any = None) -> Array:
    return jnp.einsum(
        equation, one, other, precision=exact(one.dtype), preferred_element_type=dtype
    )
