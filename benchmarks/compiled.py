"""The training step and the encoder, compiled for a GPU or TPU that need not be there.

    pip install -r requirements-aot.txt
    python -m benchmarks.compiled --target h100 --objective tncse --output before.json
    python -m benchmarks.compiled --target v5e:2x4 --objective jtcse --tower-devices 2
    python -m benchmarks.compiled --target h100 --objective tncse --compare before.json

XLA compiles on any machine. Counts, bytes, planned memory and transfers are those of the program
that the device would run, with one exception: on a GPU it measures several kernels for each matrix
product and takes the fastest, here it takes its default. Times are an estimate, whose assumptions
are printed. All figures are per device.
"""

import os

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # the target's devices are not opened

import argparse
import gzip
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

import jax

from benchmarks.limits import SIZES
from benchmarks.program import counts, hlo, tables
from benchmarks.program.figures import assumptions, figures
from benchmarks.program.steps import Case, checked_config, lower_encoder, lower_step
from benchmarks.program.targets import Target, find_target
from benchmarks.race import report, show
from jtcse_jax.architecture import Cross
from jtcse_jax.config import Config, ModelConfig
from jtcse_jax.errors import UserError, writing
from jtcse_jax.runtime.failure import one_line_errors
from jtcse_jax.runtime.files import check_replaceable
from jtcse_jax.traits import TRAITS

PROGRAMS = {"step": lower_step, "encoder": lower_encoder}


@one_line_errors
def main() -> None:
    """Compiles, prints the tables and writes the figures as JSON."""
    options = _read_options()
    before = _read_run(options.compare) if options.compare else None
    case = _case(options)
    checked_config(case)
    target = find_target(options.target, options.devices)
    programs, launches = {}, {}
    for name in options.program:
        programs[name], launches[name] = compile_program(name, case, target, options.hlo)
    title = f"{options.size}, {case.objective}, for {options.target} x {len(target.devices)}"
    paths = ("output", "hlo", "compare")
    fields = {key: value for key, value in vars(options).items() if key not in paths}
    report(
        title,
        tables.overview(programs),
        options.output,
        options=fields,
        case=asdict(case),
        device=target.devices[0].device_kind,
        devices=len(target.devices),
        assumed=asdict(target.rates),
        programs=programs,
    )
    print(assumptions(target.rates, case.dtype))
    for name, program in programs.items():
        show(f"{name}: by kind of operation", tables.kinds(program))
        if program["collectives"]:
            show(f"{name}: collectives", tables.collectives(program))
        if options.top:
            show(f"{name}: most bytes", tables.largest(launches[name], options.top))
        if before is not None and name in before:
            show(f"{name}: change", tables.differences(before[name], program))


def compile_program(
    name: str, case: Case, target: Target, folder: Path | None = None
) -> tuple[dict[str, Any], list[counts.Launch]]:
    """The figures of `step` or `encoder` and its launches; its text goes to `folder`, if given.

    Raises UserError if the compiler refuses the program, for example because it does not fit the
    device's memory.
    """
    lowered = PROGRAMS[name](case, target.devices)
    began = time.perf_counter()
    try:
        compiled = lowered.lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        reason = str(error).strip().splitlines()[0].rstrip(".")
        raise UserError(f"The {name} does not compile for {target.name}: {reason}.") from error
    seconds = time.perf_counter() - began
    text = compiled.as_text()
    if folder is not None:
        path = folder / f"{name}.hlo.gz"
        with writing(path):
            path.write_bytes(gzip.compress(text.encode(), compresslevel=4))
    counted = counts.count(hlo.parse(text))
    return figures(name, case, target, lowered, compiled, counted, seconds), counted.launches


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--target", required=True, help="h100, h200, a100 or, say, v5e:2x4")
    parser.add_argument("--devices", type=int, help="default: one GPU, all chips of a TPU topology")
    parser.add_argument("--program", nargs="+", choices=PROGRAMS, default=[*PROGRAMS])
    parser.add_argument("--objective", choices=tuple(TRAITS), default="tncse")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--layers", type=int, help="default: those of the size")
    parser.add_argument("--towers", type=int, help="default: 2 for tncse and jtcse, else 1")
    parser.add_argument("--batch", type=int, default=64, help="sentences, over all devices")
    parser.add_argument("--micro-batch", type=int, help="sentences at a time; default: all")
    parser.add_argument("--rows", type=int, help="packed rows of a batch; default: as needed")
    parser.add_argument("--max-len", type=int, default=64)
    dtypes = _choices(ModelConfig, "compute_dtype")
    parser.add_argument("--dtype", choices=dtypes, default="bfloat16")
    parser.add_argument("--tower-devices", type=int, default=1, help="groups of devices by tower")
    parser.add_argument("--fsdp-devices", type=int, default=1, help="devices to split parameters")
    parser.add_argument("--cross", choices=_choices(Cross, "mode"), default="side")
    parser.add_argument("--pooling", choices=("cls", "mean"), default="cls")
    parser.add_argument("--dropout", type=float, default=0.1)
    generators = _choices(Config, "dropout_generator")
    parser.add_argument("--generator", choices=generators, default=generators[0])
    parser.add_argument("--top", type=int, default=0, help="print the launches that move most")
    parser.add_argument("--hlo", type=_folder, help="folder for the programs' text")
    parser.add_argument("--compare", type=Path, help="JSON of an earlier run")
    parser.add_argument("--output", type=check_replaceable, help="a JSON file")
    return parser.parse_args()


def _case(options: argparse.Namespace) -> Case:
    architecture = SIZES[options.size]
    if options.layers is not None:
        architecture = replace(architecture, num_layers=options.layers)
    towers = options.towers
    if towers is None:
        towers = 2 if options.objective in ("tncse", "jtcse") else 1
    return Case(
        architecture=architecture,
        towers=towers,
        **{
            name: getattr(options, name)
            for name in (
                *("objective", "batch", "micro_batch", "rows", "max_len", "dtype"),
                *("tower_devices", "fsdp_devices", "cross", "pooling", "dropout", "generator"),
            )
        },
    )


def _read_run(path: Path) -> dict[str, Any]:
    """The programs of an earlier run. Raises UserError if the file is not one of this command."""
    try:
        programs = json.loads(path.read_text(encoding="utf-8"))["programs"]
        return {name: dict(one, kinds=dict(one["kinds"])) for name, one in programs.items()}
    except OSError as error:
        raise UserError(f"--compare {path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"--compare {path} is not the JSON of an earlier run.") from error


def _folder(name: str) -> Path:
    path = Path(name)
    if not path.is_dir():
        raise UserError(f"--hlo {name} is not a folder; create it first.")
    return path


def _choices(config: type, field: str) -> tuple[str, ...]:
    return get_args(get_type_hints(config)[field])


if __name__ == "__main__":
    main()
