"""A training step on more devices and on larger batches: time, memory, and what travels.

    python -m benchmarks.scaling --batch 64 256 1024 --devices 1 2 4 8 --output scaling.json

Every device count gets `--batch` sentences in all: negatives are global, so that more devices do
not change the step, only who does it. On a CPU the devices are simulated on the same cores: memory
and collectives are real there, speed-up is not.
"""

import argparse
import math
import re
from collections.abc import Callable
from itertools import product

import jax

from benchmarks.limits import SIZES
from benchmarks.race import Contender, outcome_fields, race, report
from benchmarks.text import token_ids
from benchmarks.train_step import ROW_LENGTH, SLOTS, Sentences, packed, work_of
from jtcse_jax import sharding
from jtcse_jax.config import Cross, ModelConfig, ObjectiveConfig, OptimizerConfig
from jtcse_jax.data.packing import pack
from jtcse_jax.models.towers import Bank
from jtcse_jax.optimizer import make_optimizer
from jtcse_jax.train_step import init_state, make_train_step

_COLLECTIVE = re.compile(
    r"= (.*?) (?:all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute)(-start)?\("
)
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\]")
_BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}


def main() -> None:
    """Measures, prints a table and writes it as JSON."""
    options = _read_options()
    on_cpu = jax.default_backend() == "cpu"
    rows, outcomes = [], {}
    for batch, devices in product(options.batch, options.devices):
        arguments = {
            "objective": options.objective,
            "size": options.size,
            "sentences": token_ids(options.text, options.max_len, batch, 1)[0],
            "devices": devices,
            "tower_devices": options.tower_devices,
            "dtype": options.dtype,
        }
        flags = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        contender = Contender(sharded_step, arguments, flags if on_cpu else {})
        name = f"{batch} sentences, {devices} devices"
        outcome = race({name: contender}, options.rounds, turns=1)[name]
        outcomes[name] = outcome_fields(outcome)
        rows.append(
            {
                f"{options.size}, {options.objective}": name,
                "s a step": outcome.median,
                "sentences/s": batch / outcome.median,
                "real tokens/s": work_of(arguments["sentences"]).tokens / outcome.median,
                **outcome.numbers,
            }
        )
    fields = {key: value for key, value in vars(options).items() if key != "output"}
    report("scaling", rows, options.output, options=fields, outcomes=outcomes)


def _read_options() -> argparse.Namespace:
    on_cpu = jax.default_backend() == "cpu"
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--text", help="one sentence a line; else lengths like Wikipedia's")
    parser.add_argument("--size", choices=SIZES, default="small" if on_cpu else "base")
    parser.add_argument("--objective", choices=("tncse", "jtcse"), default="jtcse")
    parser.add_argument("--batch", type=int, nargs="+", default=[64], help="sentences in all")
    parser.add_argument("--devices", type=int, nargs="+", default=[1])
    parser.add_argument("--tower-devices", type=int, default=1, help="groups of devices")
    parser.add_argument("--max-len", type=int, default=64)
    parser.add_argument("--dtype", default="float32" if on_cpu else "bfloat16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--output", help="a JSON file")
    return parser.parse_args()


def sharded_step(
    objective: str,
    size: str,
    sentences: Sentences,
    devices: int,
    tower_devices: int,
    dtype: str,
) -> Callable[[], dict[str, float]]:
    """A compiled step over that many devices; it also tells its memory and what it moves."""
    mesh = sharding.make_mesh(tower_devices, jax.devices()[:devices])
    architecture = SIZES[size]
    cross = Cross(num_layers=architecture.num_layers // 2)
    config = ModelConfig(towers=("scratch", "scratch"), compute_dtype=dtype, cross=cross)
    bank = Bank.from_config(config, architecture, mesh)
    optimizer = make_optimizer(OptimizerConfig(), 1000)
    state = init_state({"towers": bank.init(0)}, optimizer)
    shardings = sharding.tower_shardings(mesh, state)
    state = sharding.place(state, shardings)
    step = make_train_step(bank, ObjectiveConfig(name=objective), optimizer, shardings)
    lengths = [len(sentence) for sentence in sentences for _ in range(2)]
    columns = mesh.shape["data"]
    needed = pack(lengths, ROW_LENGTH, SLOTS, group=2).num_rows
    batch = packed(sentences, -(-needed // columns) * columns)
    batch = sharding.place_batch(mesh, batch)
    key = jax.random.key(0)
    compiled = step.lower(state, batch, key).compile()
    memory = compiled.memory_analysis()
    moved = {
        "state MB a device": memory.argument_size_in_bytes / 1e6,
        "temporary MB a device": memory.temp_size_in_bytes / 1e6,
        "collectives": float(len(_COLLECTIVE.findall(compiled.as_text()))),
        "moved MB a device": moved_bytes(compiled.as_text()) / 1e6,
    }

    def work() -> dict[str, float]:
        nonlocal state
        state, metrics = step(state, batch, key)
        jax.block_until_ready(metrics)
        return moved

    return work


def moved_bytes(text: str) -> int:
    """Bytes of the results of all collectives in a compiled program's text, of one device."""
    total = 0
    for results, started in _COLLECTIVE.findall(text):
        arrays = [
            _BYTES.get(dtype, 4) * math.prod(int(size) for size in dims.split(",") if size)
            for dtype, dims in _ARRAY.findall(results)
        ]
        # What has only started names its operands too, before the results.
        total += sum(arrays[len(arrays) // 2 :] if started and len(arrays) > 1 else arrays)
    return total


if __name__ == "__main__":
    main()
