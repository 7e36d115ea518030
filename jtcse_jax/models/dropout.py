"""Dropout from random bits that are drawn once per layer and passed in."""

import itertools
import math
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array


def dropout(x: Array, rate: float, bits: Array | None) -> Array:
    """x with a share `rate` of its entries zeroed and the rest scaled by 1 / (1 - rate).

    `bits` [shape of x] uint16 decide, so `rate` is rounded to a multiple of 2^-16; None means no
    dropout. The scale is applied in float32 and the result rounded to the dtype of x.
    """
    steps = min(round(rate * 2**16), 2**16 - 1)
    if bits is None or steps == 0:
        return x
    scaled = x.astype(jnp.float32) / (1 - steps / 2**16)  # bfloat16 would round the divisor
    return jnp.where(bits >= steps, scaled, 0).astype(x.dtype)


def random_bits(key: Array | None, leading: int, *shapes: tuple[int, ...]) -> list[Array | None]:
    """Random uint16 of each shape, all from one draw; without a key, None for each shape.

    It is one draw because each draw takes a CPU time to compile; 16 bits are as good as 32 here.
    The shapes share their first `leading` axes: streams, if any, and rows, which may be sharded.
    The bits of a row do not depend on the rows after it, so fillers change nothing.
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
