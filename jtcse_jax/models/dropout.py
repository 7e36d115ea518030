"""Dropout by masks that are drawn once per layer and passed in."""

import itertools
import math
from collections.abc import Sequence
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array


def dropout(x: Array, rate: float, kept: Array | None) -> Array:
    """x with a share `rate` of its entries zeroed and the rest scaled by 1 / (1 - rate).

    `kept` [shape of x] bool are the entries that stay, from `random_masks` with this rate; None
    means no dropout. The scale is applied in float32 and the result rounded to the dtype of x.
    """
    steps = _steps(rate)
    if kept is None or steps == 0:
        return x
    scaled = x.astype(jnp.float32) / (1 - steps / 2**16)  # bfloat16 would round the divisor
    return jnp.where(kept, scaled, 0).astype(x.dtype)


def random_masks(
    key: Array | None, leading: int, *sites: tuple[tuple[int, ...], float]
) -> Sequence[Array | None]:
    """Which entries dropout keeps: bool of each site's shape; without a key, None for each site.

    A site is a shape and a rate, which is rounded to a multiple of 2^-16. The shapes share their
    first `leading` axes: streams, if any, and rows, which may be sharded. On a TPU the masks are
    not those of other devices.
    """
    if key is None:
        return [None] * len(sites)
    return jax.lax.platform_dependent(
        key,
        tpu=partial(_single_draws, leading=leading, sites=sites),
        default=partial(_one_draw, leading=leading, sites=sites),
    )


def _one_draw(key: Array, leading: int, sites: Sequence[tuple]) -> list[Array]:
    """The masks from one draw, because each draw takes a CPU time to compile."""
    shapes, rates = zip(*sites, strict=True)
    axes = shapes[0][:leading]
    sizes = [math.prod(shape[leading:]) for shape in shapes]
    words = [-(-size // 2) for size in sizes]  # each has the bits of two entries
    steps = jnp.concatenate(
        [jnp.full(n, _steps(rate), jnp.uint32) for n, rate in zip(words, rates, strict=True)]
    )
    bits = random_bits(key, axes, (sum(words),))
    low, high = (bits & 0xFFFF) >= steps, (bits >> 16) >= steps
    # Two entries in one number: a GPU then compares the bits as it draws them and writes a byte
    # for each entry. Without the barrier XLA would store the bits for the backward pass instead.
    both = low.astype(jnp.uint16) | (high.astype(jnp.uint16) << 8)
    both = jax.lax.optimization_barrier(both)
    kept = jax.lax.bitcast_convert_type(both, jnp.uint8).reshape(*axes, -1) != 0
    starts = itertools.accumulate(words[:-1], initial=0)
    return [
        kept[..., 2 * start : 2 * start + size].reshape(shape)
        for shape, size, start in zip(shapes, sizes, starts, strict=True)
    ]


def _single_draws(key: Array, leading: int, sites: Sequence[tuple]) -> list[Array]:
    """A draw for each mask, in its shape: a TPU would copy slices of one draw to other tiles."""
    masks = []
    for number, (shape, rate) in enumerate(sites):
        bits = random_bits(jax.random.fold_in(key, number), shape[:leading], shape[leading:])
        # Without the barrier XLA would store the bits for the backward pass.
        masks.append(jax.lax.optimization_barrier(bits >= np.uint32(_steps(rate) << 16)))
    return masks


def random_bits(key: Array, leading: tuple[int, ...], rest: tuple[int, ...]) -> Array:
    """Random uint32 [*leading, *rest]; `leading` is the streams, if any, and the rows.

    The bits of a row do not depend on the rows after it, so fillers change nothing.
    """
    *streams, rows = leading
    draw = partial(jax.random.bits, shape=(rows, *rest))
    if streams:
        key, draw = jax.random.split(key, *streams), jax.vmap(draw)
    return draw(key)


def _steps(rate: float) -> int:
    """The rate as a number of 2^16 steps: bits below it zero an entry."""
    return min(round(rate * 2**16), 2**16 - 1)


def site_key(key: Array | None, layer: int) -> Array | None:
    """Dropout key of one layer; layer 0 is the embedding."""
    return None if key is None else jax.random.fold_in(key, layer)
