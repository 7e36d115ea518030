"""Measures the limits of the device, and computes the least time of a training step from them.

    python -m benchmarks.limits --output limits.json

The floor of a step is the sum of two times that cannot overlap much in a step: its matrix products
over real tokens at the rate of one large product, and the optimizer's bytes at the rate of a plain
copy. AdamW moves 28 bytes per parameter (it reads weight, gradient and two moments and writes all
but the gradient, 4 bytes each) and, if the towers compute in bfloat16, 6 more for the bfloat16
copy.
"""

import argparse
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.race import report
from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.errors import one_line_errors
from jtcse_jax.models.bert import exact
from jtcse_jax.runtime.files import check_replaceable
from jtcse_jax.training.flops import Work, crossed_layers, forward_flops

SIZES = {
    "base": Architecture(),
    "minilm": Architecture(hidden_size=384, num_layers=6, intermediate_size=1536),
    "small": Architecture(hidden_size=256, num_layers=4, num_heads=4, intermediate_size=1024),
}
ADAMW_BYTES = {"float32": 28, "bfloat16": 34}
_ROUNDS = 10


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
                seconds = floor(base, work, dtype, rate, copy, crossed_layers=crossed)
                rows.append(
                    {
                        "BERT-base twin": objective,
                        "dtype": dtype,
                        "tokens a sentence": length,
                        "product rate TFLOP/s": rate / 1e12,
                        "copy GB/s": copy / 1e9,
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


def product_rate(dtype: str) -> float:
    """Operations per second of the fastest of a few large square products."""
    rates = []
    for size in (2048, 3072) if jax.default_backend() == "cpu" else (4096, 8192):
        x = jnp.ones((size, size), dtype)
        product = jax.jit(lambda x: jnp.matmul(x, x, precision=exact(x.dtype)))
        rates.append(2 * size**3 / _best_seconds(product, x))
    return max(rates)


def bandwidth() -> float:
    """Bytes per second, read and written together, of x + 1 in place, for a large float32 array."""
    x = jnp.ones(2**26 if jax.default_backend() == "cpu" else 2**28, jnp.float32)
    add_one = jax.jit(lambda x: x + 1, donate_argnums=0)
    seconds = []
    for _ in range(_ROUNDS):
        jax.block_until_ready(x)
        began = time.perf_counter()
        x = jax.block_until_ready(add_one(x))
        seconds.append(time.perf_counter() - began)
    return 2 * x.nbytes / min(seconds)


def _best_seconds(function: Callable, *arguments: jax.Array) -> float:
    jax.block_until_ready(function(*arguments))
    seconds = []
    for _ in range(_ROUNDS):
        began = time.perf_counter()
        jax.block_until_ready(function(*arguments))
        seconds.append(time.perf_counter() - began)
    return min(seconds)


if __name__ == "__main__":
    main()
