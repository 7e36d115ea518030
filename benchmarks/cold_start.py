"""The cold start: imports, and tracing and compiling the training step in a fresh process.

    python -m benchmarks.cold_start --output cold_start.json

Two processes share one folder of compiled programs, empty at first; the second finds the programs
that the first has compiled. Nothing is run and no parameter is made: `python -m
benchmarks.train_step` measures the first step, in which the kernel also fills the memory. `imports`
are those of `jtcse_jax.train`, including torch if it is installed, because transformers imports it.
All times are the best of `--turns`.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import jax

from benchmarks.limits import SIZES
from benchmarks.race import Contender, Outcome, outcome_fields, race, report
from benchmarks.text import add_options, token_ids
from benchmarks.train_step import Sentences, packed, rows_of, step_and_state
from jtcse_jax.runtime import sharding
from jtcse_jax.runtime.command import set_up_jax
from jtcse_jax.runtime.failure import one_line_errors
from jtcse_jax.runtime.files import check_replaceable

IMPORTS = """
import time
began = time.perf_counter()
import jtcse_jax.train
print(time.perf_counter() - began)
"""


@one_line_errors
def main() -> None:
    """Measures, prints a table and writes it as JSON."""
    options = _read_options()
    (sentences,) = token_ids(options.text, options.tokenizer, options.max_len, options.batch, 1)
    arguments = {
        "objective": options.objective,
        "size": options.size,
        "sentences": sentences,
        "dtype": options.dtype,
    }
    start = Contender(compile_step, arguments)
    outcomes = [first_and_again(start) for _ in range(options.turns)]
    best = {
        name: min((turn[name] for turn in outcomes), key=lambda outcome: outcome.median)
        for name in outcomes[0]
    }
    imports = min(import_seconds() for _ in range(options.turns))
    rows = [
        {
            f"{options.size}, {options.objective}": name,
            "imports s": imports,
            "tracing s": outcome.numbers["tracing"],
            "lowering s": outcome.numbers["lowering"],
            "compiling s": outcome.numbers["compiling"],
            "in all, without imports s": outcome.median,
        }
        for name, outcome in best.items()
    ]
    fields = {key: value for key, value in vars(options).items() if key != "output"}
    every = [{name: outcome_fields(outcome) for name, outcome in turn.items()} for turn in outcomes]
    report("cold start", rows, options.output, options=fields, outcomes=every)


def _read_options() -> argparse.Namespace:
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--objective", choices=("tncse", "jtcse"), default="tncse")
    parser.add_argument("--batch", type=int, default=8 if on_cpu else 64, help="sentences")
    parser.add_argument("--max-len", type=int, default=64)
    parser.add_argument("--dtype", default="float32" if on_cpu else "bfloat16")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--output", type=check_replaceable, help="a JSON file")
    return parser.parse_args()


def first_and_again(start: Contender) -> dict[str, Outcome]:
    """Two starts in sequence that share one folder of compiled programs, empty at first."""
    with tempfile.TemporaryDirectory() as folder:
        start = replace(start, environment={"JAX_COMPILATION_CACHE_DIR": folder})
        return race({"first": start, "again": start}, rounds=1, warmup=0, turns=1)


def compile_step(
    objective: str, size: str, sentences: Sentences, dtype: str
) -> Callable[[], dict[str, float]]:
    """Traces, lowers and compiles the trainer's step, and returns the time of each."""
    set_up_jax(deterministic=False)
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    batch = sharding.place_batch(mesh, packed(sentences, rows_of(sentences)))
    key = jax.random.key(0)

    def work() -> dict[str, float]:
        times = [time.perf_counter()]
        step, state = step_and_state(objective, size, dtype, mesh, abstract=True)
        traced = step.jitted.trace(state, batch, key, step.frozen)
        times.append(time.perf_counter())
        lowered = traced.lower()
        times.append(time.perf_counter())
        lowered.compile()
        times.append(time.perf_counter())
        names = ("tracing", "lowering", "compiling")
        return {name: times[n + 1] - times[n] for n, name in enumerate(names)}

    return work


def import_seconds() -> float:
    """Seconds that a fresh process takes to import the trainer."""
    said = subprocess.run([sys.executable, "-c", IMPORTS], capture_output=True, check=True)
    return float(said.stdout.split()[-1])


if __name__ == "__main__":
    main()
