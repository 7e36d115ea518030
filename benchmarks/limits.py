"""Measures the limits of the device, and computes the least time of a training step from them.

    python -m benchmarks.limits --output limits.json

The floor of a step is the sum of two times that cannot overlap much in a step: its matrix products
over real tokens at the rate of one large product, and the optimizer's bytes at the rate of a plain
copy. AdamW moves 28 bytes per parameter (it reads weight, gradient and two moments and writes all
but the gradient, 4 bytes each). If the towers compute in bfloat16 it moves 32: the gradient is
bfloat16 as well, 2 bytes less, and the bfloat16 copy of the weight takes 6 more.

Rates are of random numbers, because products of constants take less power and run faster than a
step's. A round is many calls in flight that are waited for at its end; the rate is the median of
the rounds, the range their least and most.
"""

import argparse
import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.race import report
from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.errors import one_line_errors
from jtcse_jax.models.lean import exact
from jtcse_jax.runtime.files import check_replaceable
from jtcse_jax.training.flops import Work, crossed_layers, forward_flops

SIZES = {
    "base": Architecture(),
    "minilm": Architecture(hidden_size=384, num_layers=6, intermediate_size=1536),
    "small": Architecture(hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024),
    "tiny": Architecture(hidden_size=64, num_layers=2, num_heads=2, intermediate_size=128),
}
ADAMW_BYTES = {"float32": 28, "bfloat16": 32}
_ROUNDS, _ROUND_SECONDS = 5, 0.1


class Rate(NamedTuple):
    """Operations or bytes per second in several rounds."""

    median: float
    least: float
    most: float


@one_line_errors
def main() -> None:
    """Measures the device and prints the floors of a step of 64 sentences with two views each."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--lengths", type=int, nargs="+", default=[25, 31, 64], help="of sentences")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--output", type=check_replaceable, help="a JSON file")
    options = parser.parse_args()
    on_cpu = jax.default_backend() == "cpu"
    copy = bandwidth()
    base, rows = SIZES["base"], []
    for dtype in ("float32",) if on_cpu else ("float32", "bfloat16"):
        rate = product_rate(dtype)
        for length in options.lengths:
            views = 2 * options.batch
            work = Work(length * views, length**2 * views, views)
            for objective, crossed in (("tncse", 0), ("jtcse", crossed_layers(base, Cross()))):
                seconds = floor(base, work, dtype, rate.median, copy.median, crossed_layers=crossed)
                rows.append(
                    {
                        "BERT-base twin": objective,
                        "dtype": dtype,
                        "tokens a sentence": length,
                        "product rate TFLOP/s": rate.median / 1e12,
                        "product rate, range": _range(rate, 1e12),
                        "copy GB/s": copy.median / 1e9,
                        "copy, range": _range(copy, 1e9),
                        "floor ms": seconds * 1e3,
                    }
                )
    report("limits", rows, options.output, batch=options.batch)


def floor(
    architecture: Architecture,
    work: Work,
    dtype: str,
    rate: float,
    copy: float,
    *,
    towers: int = 2,
    crossed_layers: int = 0,
) -> float:
    """The least seconds of a training step.

    Args:
      architecture: architecture of a tower.
      work: work of a batch in one tower.
      dtype: dtype in which the towers compute.
      rate: operations per second, from `product_rate`.
      copy: bytes per second, from `bandwidth`.
      towers: number of towers.
      crossed_layers: layers that a crossed stream runs too, see `flops.crossed_layers`.
    """
    products = 3 * towers * forward_flops(architecture, work, crossed_layers=crossed_layers)
    return products / rate + towers * parameters(architecture) * ADAMW_BYTES[dtype] / copy


def parameters(architecture: Architecture) -> int:
    """Parameters of a tower."""
    size, inner = architecture.hidden_size, architecture.intermediate_size
    rows = architecture.vocab_size + architecture.max_positions + architecture.type_vocab_size
    layer = 4 * (size + 1) * size + (size + 1) * inner + (inner + 1) * size + 4 * size
    return rows * size + 2 * size + architecture.num_layers * layer + (size + 1) * size


def product_rate(dtype: str) -> Rate:
    """Operations per second of the fastest of a few large square products."""

    @jax.jit
    def product(x: jax.Array) -> jax.Array:
        return jnp.matmul(x, x, precision=exact(x.dtype))

    rates = []
    for size in (2048, 3072) if jax.default_backend() == "cpu" else (4096, 8192):
        x = jax.random.normal(jax.random.key(0), (size, size), dtype)
        rates.append(_rate(lambda x=x: product(x), 2 * size**3))
    return max(rates)


def bandwidth() -> Rate:
    """Bytes per second, read and written together, of x + 1 in place, for a large float32 array."""
    count = 2**26 if jax.default_backend() == "cpu" else 2**28
    x = jax.random.normal(jax.random.key(0), count)
    add_one = jax.jit(lambda x: x + 1, donate_argnums=0)

    def work() -> jax.Array:
        nonlocal x
        x = add_one(x)
        return x

    return _rate(work, 2 * x.nbytes)


def _rate(call: Callable[[], jax.Array], amount: float) -> Rate:
    """The rate of calls that do `amount` each, as many in a round as fill its time."""
    jax.block_until_ready(call())  # compiles
    began = time.perf_counter()
    jax.block_until_ready(call())
    calls = math.ceil(_ROUND_SECONDS / (time.perf_counter() - began))
    rates = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        for _ in range(calls):
            result = call()
        jax.block_until_ready(result)
        rates.append(calls * amount / (time.perf_counter() - began))
    return Rate(statistics.median(rates), min(rates), max(rates))


def _range(rate: Rate, unit: float) -> str:
    return f"{rate.least / unit:.4g} to {rate.most / unit:.4g}"


if __name__ == "__main__":
    main()
