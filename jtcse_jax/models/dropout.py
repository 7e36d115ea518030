"""Dropout whose random bits are drawn once a layer and handed in."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def dropout(x: Array, rate: float, bits: Array | None) -> Array:
    """x with a share `rate` of its entries zeroed and the rest scaled by 1 / (1 - rate).

    `bits` [shape of x] uint16 decide, so that `rate` is rounded to a multiple of 2^-16; None means
    no dropout. The scale is applied in float32 and the result rounded to the dtype of x.
    """
    steps = min(round(rate * 2**16), 2**16 - 1)
    if bits is None or steps == 0:
        return x
    scaled = x.astype(jnp.float32) / (1 - steps / 2**16)  # bfloat16 would round the divisor
    return jnp.where(bits >= steps, scaled, 0).astype(x.dtype)


def random_bits(key: Array | None, leading: int, *shapes: tuple[int, ...]) -> list[Array | None]:
    """Random uint16 of each shape, all from one draw; None for each where there is no key.

    One draw, because each takes a CPU time to compile; 16 bits decide as well as 32 would. The
    shapes have their first `leading` axes in common: streams, if any, and rows, which may be
    sharded. The bits of a row are the same whatever rows come after it: fillers must not decide.
    """
    if key is None:
        return [None] * len(shapes)
    *streams, rows = shapes[0][:leading]
    sizes = [math.prod(shape[leading:]) for shape in shapes]
    draw = partial(jax.random.bits, shape=(rows, -(-sum(sizes) // 2)))
    if streams:
        key, draw = jax.random.split(key, *streams), jax.vmap(draw)
    bits = jax.lax.bitcast_convert_type(draw(key), jnp.uint16).reshape(*streams, rows, -1)
    ends = itertools.accumulate(sizes)
    return [
        bits[..., end - size : end].reshape(shape)
        for shape, size, end in zip(shapes, sizes, ends, strict=True)
    ]


def site_key(key: Array | None, layer: int) -> Array | None:
    """Dropout key of one layer; layer 0 is the embedding."""
    return None if key is None else jax.random.fold_in(key, layer)
