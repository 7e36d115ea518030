"""Parts of a layer with backward passes that keep little and read little.

Differentiated as written, GELU and dropout-residual-LayerNorm keep several arrays of a layer's size
for the backward pass. Here they keep one (and the mean and deviation of each vector), and compute
the rest from it again. Attention needs only its probabilities, in the compute dtype. XLA may keep
the float32 scores too; for the H100 it does.

Some operations have another form in programs for a GPU (`_on_gpu`), with fewer kernels that move
fewer bytes. On a CPU it is not faster, and on a TPU it takes more memory. Other forms are for a TPU
(`on_tpu`), whose compiler pads arrays and puts off work until it has to keep too much.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from jtcse_jax.models.dropout import dropout
from jtcse_jax.models.parts import exact, on_tpu

PyTree = Any
FORBIDDEN = -1e30  # score of a pair that attention must not connect


@jax.custom_vjp
def gelu(x: Array) -> Array:
    """Exact GELU x Phi(x), computed in float32, in the dtype of x.

    Hendrycks and Gimpel 2016 (arXiv 1606.08415). Only x is kept for the backward pass.
    """
    wide = x.astype(jnp.float32)
    return (wide * _normal_cdf(wide)).astype(x.dtype)


def _gelu_backward(x: Array, gradient: Array) -> tuple[Array]:
    """The derivative is Phi(x) + x phi(x), with the normal distribution's Phi and density phi."""
    wide = x.astype(jnp.float32)
    density = jnp.exp(-0.5 * wide**2) * np.float32((2 * np.pi) ** -0.5)
    derivative = _normal_cdf(wide) + wide * density
    return ((gradient.astype(jnp.float32) * derivative).astype(x.dtype),)


def _normal_cdf(x: Array) -> Array:
    """Phi(x) by erf, as in PyTorch; erfc, as in `jax.nn.gelu`, takes a CPU 1.6 times as long."""
    return 0.5 + 0.5 * jax.lax.erf(x * np.float32(0.5**0.5))


gelu.defvjp(lambda x: (gelu(x), x), _gelu_backward)


@partial(jax.checkpoint, static_argnums=0)
def activated_dense(
    activation: Callable[[Array], Array], x: Array, bias: Array, kernel: Array
) -> Array:
    """activation(x + b) W: [..., E] from [..., D], [D] and [D, E], all in one dtype.

    The backward pass computes the activation from x a second time instead of keeping it.
    """
    return product(activation(x + bias), kernel)


@jax.custom_vjp
def joint_dense(x: Array, *layers: tuple[Array, Array | None]) -> list[Array]:
    """x W + b for several layers (W, b) of one size: [..., E] each, from [..., D], in one dtype.

    In training on a GPU the layers are one product, and so are the gradients of x and of their
    weights.
    """
    return _single_denses(x, *layers)


def _joint_forward(*args: Any) -> tuple[list[Array], tuple]:
    return _on_gpu(_split_dense, _single_denses, *args), args


def _joint_backward(saved: tuple, gradients: list[Array]) -> tuple:
    def one(gradients: list[Array], *saved: Any) -> tuple:
        # Without the barrier XLA would concatenate the gradients again for each use.
        gradient = jax.lax.optimization_barrier(jnp.concatenate(gradients, axis=-1))
        return jax.vjp(_one_dense, *saved)[1](gradient)

    def single(gradients: list[Array], *saved: Any) -> tuple:
        return jax.vjp(_single_denses, *saved)[1](gradients)

    return _on_gpu(one, single, gradients, *saved)


joint_dense.defvjp(_joint_forward, _joint_backward)


def _single_denses(x: Array, *layers: tuple[Array, Array | None]) -> list[Array]:
    return [_dense(x, kernel, bias) for kernel, bias in layers]


def _split_dense(x: Array, *layers: tuple[Array, Array | None]) -> list[Array]:
    return jnp.split(_one_dense(x, *layers), len(layers), axis=-1)


def _one_dense(x: Array, *layers: tuple[Array, Array | None]) -> Array:
    """The results of all layers side by side, [..., n E]."""
    kernels, biases = zip(*layers, strict=True)
    # Without the barrier XLA would concatenate the kernels again for each use.
    kernel = jax.lax.optimization_barrier(jnp.concatenate(kernels, axis=-1))
    return _dense(x, kernel, None if biases[0] is None else jnp.concatenate(biases))


def _dense(x: Array, kernel: Array, bias: Array | None) -> Array:
    return product(x, kernel) if bias is None else product(x, kernel) + bias


def product(x: Array, kernel: Array) -> Array:
    """x W: [..., E] from [..., D] and [D, E] in one dtype."""
    return jnp.matmul(x, kernel, precision=exact(x.dtype))


@jax.custom_vjp
def gradients_in_turn(params: PyTree, hidden: Array) -> tuple[PyTree, Array]:
    """A layer's parameters and input as they are; on a TPU their gradients are computed together.

    Otherwise XLA computes the gradients of all kernels at the end, and keeps what they need.
    """
    return params, hidden


gradients_in_turn.defvjp(
    lambda params, hidden: ((params, hidden), None),
    lambda _, gradients: on_tpu(jax.lax.optimization_barrier, gradients),
)


def _on_gpu(gpu: Callable, elsewhere: Callable, *args: Any) -> Any:
    """gpu(*args) in a program for a GPU, elsewhere(*args) in one for another device."""
    return jax.lax.platform_dependent(*args, cuda=gpu, rocm=gpu, default=elsewhere)


@partial(jax.custom_vjp, nondiff_argnums=(6, 7))
def dropout_add_norm(
    x: Array,
    x_bias: Array,
    residual: Array,
    scale: Array,
    bias: Array,
    kept: Array | None,
    rate: float,
    epsilon: float,
) -> Array:
    """LayerNorm(residual + dropout(x + b)) over the last axis, computed in float32.

    Args:
      x, residual: [..., D] in one dtype, which the result has too.
      x_bias: [D] b in that dtype.
      scale, bias: [D] float32, of the LayerNorm (arXiv 1607.06450).
      kept, rate: as in `dropout`.
      epsilon: added to the variance.
    """
    return _add_norm_forward(x, x_bias, residual, scale, bias, kept, rate, epsilon)[0]


def _add_norm_forward(x, x_bias, residual, scale, bias, kept, rate, epsilon) -> tuple[Array, Any]:
    # The sum is rounded to the dtype of x: that is what the backward pass reads.
    total = residual + dropout(x + x_bias, rate, kept)
    wide = total.astype(jnp.float32)
    mean = wide.mean(-1, keepdims=True)
    # Not E[x^2] - E[x]^2: it cancels if one channel is large, as in BERT.
    inverse_stddev = jax.lax.rsqrt(((wide - mean) ** 2).mean(-1, keepdims=True) + epsilon)
    normal = (wide - mean) * inverse_stddev
    return (normal * scale + bias).astype(x.dtype), (total, mean, inverse_stddev, scale, kept)


def _add_norm_backward(rate: float, epsilon: float, saved: Any, gradient: Array) -> tuple:
    total, mean, inverse_stddev, scale, kept = saved
    wide = gradient.astype(jnp.float32)
    normal = (total.astype(jnp.float32) - mean) * inverse_stddev
    scaled = wide * scale
    along = (scaled * normal).mean(-1, keepdims=True)
    to_total = (scaled - scaled.mean(-1, keepdims=True) - normal * along) * inverse_stddev
    to_residual = to_total.astype(total.dtype)
    to_x = dropout(to_residual, rate, kept)  # zeroes and scales a gradient as it does a value
    to_scale = wide * normal
    to_x, *sums = _on_gpu(_one_sum, _single_sums, to_x, to_scale, gradient)
    return to_x, sums[0].astype(total.dtype), to_residual, *sums[1:], None


def _single_sums(to_x: Array, to_scale: Array, gradient: Array) -> tuple[Array, ...]:
    """to_x, and the sums of all three over all axes but the last, float32."""
    axes = tuple(range(to_x.ndim - 1))
    return to_x, *(x.astype(jnp.float32).sum(axes) for x in (to_x, to_scale, gradient))


def _one_sum(to_x: Array, to_scale: Array, gradient: Array) -> tuple[Array, ...]:
    """As `_single_sums`, in one pass; to_scale, float32, is rounded to the dtype of to_x."""
    # Without the barrier XLA would write and read two of them in float32.
    to_x, to_scale = jax.lax.optimization_barrier((to_x, to_scale.astype(to_x.dtype)))
    together = jnp.concatenate([to_x, to_scale, gradient], axis=-1).astype(jnp.float32)
    return to_x, *jnp.split(together.sum(tuple(range(to_x.ndim - 1))), 3)


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
    return probs, (_merge_heads(query), _merge_heads(keys), probs, bias)


def _probs_backward(kept: Any, gradient: Array) -> tuple[Array, Array, Array | None]:
    query, keys, probs, bias = kept
    query, keys = (_split_again(x, probs.shape[-3]) for x in (query, keys))
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
    return weighted_values(probs, values, kept, rate), (probs, _merge_heads(values), kept)


def _values_backward(rate: float, saved: Any, gradient: Array) -> tuple[Array, Array, None]:
    probs, values, kept = saved
    values = _split_again(values, probs.shape[-3])
    to_dropped = _product("...qd,...kd->...qk", gradient, values)
    to_values = _product("...qk,...qd->...kd", dropout(probs, rate, kept), gradient)
    return dropout(to_dropped, rate, kept), to_values, None


weighted_values.defvjp(_values_forward, _values_backward)


def split_heads(x: Array, num_heads: int) -> Array:
    """[..., H, P, d] from [..., P, D]."""
    return x.reshape(*x.shape[:-1], num_heads, -1).swapaxes(-3, -2)


def _merge_heads(x: Array) -> Array:
    """The inverse of `split_heads`: [..., P, D] from [..., H, P, d]."""
    return x.swapaxes(-3, -2).reshape(*x.shape[:-3], x.shape[-2], -1)


def _split_again(x: Array, num_heads: int) -> Array:
    """As `split_heads`, of what a forward pass saved.

    A TPU pads the heads' 64 channels to 128 and 12 heads to 16. Without the barrier XLA would
    save its padded array, which takes 2.7 times the memory of x.
    """
    return split_heads(on_tpu(jax.lax.optimization_barrier, x), num_heads)


def _product(equation: str, one: Array, other: Array, dtype: Any = None) -> Array:
    return jnp.einsum(
        equation, one, other, precision=exact(one.dtype), preferred_element_type=dtype
    )
