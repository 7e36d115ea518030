"""A training step on more devices and on larger batches: time, memory, and transfers.

    python -m benchmarks.scaling --batch 64 256 1024 --devices 1 2 4 8 --output scaling.json
    python -m benchmarks.scaling --batch 65536 --micro-batch 64 --plan

Every device count gets `--batch` sentences in total: negatives are global, so more devices divide
the same step. On a CPU the devices are simulated on the same cores: memory and collectives are real
there, the speed-up is not. Memory is the compiler's plan. With `--plan` the step is compiled and
not run, so it may be larger than the machine.
"""

import argparse
import math
import os
import re
from collections.abc import Callable
from itertools import product
from typing import NamedTuple

import jax
import numpy as np

from benchmarks.limits import SIZES
from benchmarks.race import Contender, outcome_fields, race, report
from benchmarks.text import add_options, token_ids
from benchmarks.train_step import Sentences, packed, rows_of, step_and_state, work_of
from jtcse_jax.batch import Batch
from jtcse_jax.runtime import sharding
from jtcse_jax.runtime.failure import one_line_errors
from jtcse_jax.runtime.files import check_replaceable

_COLLECTIVE = re.compile(
    r"= (.*?) (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\("
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_SOURCE = re.compile(r'op_name="([^"]*)"')
_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}


class Collective(NamedTuple):
    """Arrays that are transferred between devices in a compiled program."""

    kind: str  #: for example all-gather
    sizes: list[int]  #: bytes of each result, on one device
    source: str  #: the jax operation it comes from


@one_line_errors
def main() -> None:
    """Measures, prints a table and writes it as JSON."""
    options = _read_options()
    on_cpu = jax.default_backend() == "cpu"
    rows, outcomes = [], {}
    for batch, devices in product(options.batch, options.devices):
        arguments = {
            "objective": options.objective,
            "size": options.size,
            "sentences": token_ids(options.text, options.tokenizer, options.max_len, batch, 1)[0],
            "devices": devices,
            "tower_devices": options.tower_devices,
            "fsdp_devices": options.fsdp_devices,
            "micro_batch": options.micro_batch,
            "dtype": options.dtype,
            "plan": options.plan,
        }
        asked = f"--xla_force_host_platform_device_count={devices}"
        flags = {"XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {asked}"}
        contender = Contender(sharded_step, arguments, flags if on_cpu else {})
        name = f"{batch} sentences, {devices} devices"
        outcome = race({name: contender}, options.rounds, turns=1)[name]
        outcomes[name] = outcome_fields(outcome)
        row = {f"{options.size}, {options.objective}": name}
        if not options.plan:
            row["s a step"] = outcome.median
            row["sentences/s"] = batch / outcome.median
            row["real tokens/s"] = work_of(arguments["sentences"]).tokens / outcome.median
            row |= {"peak GB": outcome.peak_bytes / 1e9, "peak of": outcome.peak_of}
        rows.append(row | outcome.numbers)
    fields = {key: value for key, value in vars(options).items() if key != "output"}
    report("scaling", rows, options.output, options=fields, outcomes=outcomes)


def _read_options() -> argparse.Namespace:
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add_options(parser)
    parser.add_argument("--size", choices=SIZES, default="small" if on_cpu else "base")
    parser.add_argument("--objective", choices=("tncse", "jtcse"), default="jtcse")
    parser.add_argument("--batch", type=int, nargs="+", default=[64], help="sentences in total")
    parser.add_argument("--devices", type=int, nargs="+", default=[1])
    parser.add_argument("--tower-devices", type=int, default=1, help="groups of devices by tower")
    parser.add_argument("--fsdp-devices", type=int, default=1, help="devices to split parameters")
    parser.add_argument("--micro-batch", type=int, help="sentences at a time; default: all")
    parser.add_argument("--plan", action="store_true", help="compile the step, do not run it")
    parser.add_argument("--max-len", type=int, default=64)
    parser.add_argument("--dtype", default="float32" if on_cpu else "bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", type=check_replaceable, help="a JSON file")
    options = parser.parse_args()
    micro = options.micro_batch
    if micro is not None and (micro < 1 or any(batch % micro for batch in options.batch)):
        parser.error(f"--micro-batch {micro}: it must divide every --batch")
    return options


def sharded_step(
    objective: str,
    size: str,
    sentences: Sentences,
    devices: int,
    tower_devices: int,
    fsdp_devices: int,
    micro_batch: int | None,
    dtype: str,
    plan: bool,
) -> Callable[[], dict[str, float]]:
    """A compiled step over `devices` devices; each call returns its memory and transfers.

    With `plan` a call only returns these and does not run the step.
    """
    mesh = sharding.make_mesh(tower_devices, fsdp_devices, devices=jax.devices()[:devices])
    step, state = step_and_state(objective, size, dtype, mesh, abstract=plan)
    batch = sharding.place_batch(mesh, _packed(sentences, micro_batch, sharding.row_shards(mesh)))
    key = jax.random.key(0)
    compiled = step.lower(state, batch, key).compile()
    memory, travelling = compiled.memory_analysis(), collectives(compiled.as_text())
    moved = {
        "state MB a device": memory.argument_size_in_bytes / 1e6,
        "temporary MB a device": memory.temp_size_in_bytes / 1e6,
        "collectives": len(travelling),
        "moved MB a device": sum(sum(each.sizes) for each in travelling) / 1e6,
    }

    def work() -> dict[str, float]:
        nonlocal state
        if not plan:
            state, metrics = step(state, batch, key)
            jax.block_until_ready(metrics)
        return moved

    return work


def _packed(sentences: Sentences, micro_batch: int | None, columns: int) -> Batch:
    """Both views of all sentences; every micro-batch has one multiple of `columns` rows."""
    count = micro_batch or len(sentences)
    parts = [sentences[start : start + count] for start in range(0, len(sentences), count)]
    rows = -(-max(map(rows_of, parts)) // columns) * columns
    batches = [packed(part, rows) for part in parts]
    return jax.tree.map(lambda *each: np.stack(each), *batches) if micro_batch else batches[0]


def collectives(program: str) -> list[Collective]:
    """The collectives in the text of a compiled program, in their order."""
    found = []
    for line in program.splitlines():
        if match := _COLLECTIVE.search(line):
            results, kind, started = match.groups()
            sizes = [
                _BYTES.get(dtype, 4) * math.prod(int(size) for size in dims.split(",") if size)
                for dtype, dims in _ARRAY.findall(results)
            ]
            # A collective's "-start" lists its operands before the results.
            if started and len(sizes) > 1:
                sizes = sizes[len(sizes) // 2 :]
            source = _SOURCE.search(line)
            found.append(Collective(kind, sizes, source[1] if source else ""))
    return found


if __name__ == "__main__":
    main()
