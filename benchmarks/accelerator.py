"""Everything that a new device should report, most important first, within a budget of seconds.

    python -m benchmarks.accelerator --budget 460 --output FOLDER

Each part is a command of its own, with a time limit of its own and within what is left. A part that
fails or is cut leaves the next ones as they are. After each part FOLDER/results.json has the parts
so far, with their results or the reason why there are none; FOLDER/PART.log has what it printed.

All parts share a folder of compiled programs, a temporary one unless JAX_COMPILATION_CACHE_DIR
names one, so a step is compiled once: `train` tells how long that takes, the same step in
`opponents` does not. `cold_start` has its own.
"""

import argparse
import contextlib
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.race import show
from benchmarks.text import add_options
from benchmarks.train_step import PROGRAM, TRACED
from jtcse_jax.errors import UserError, writing
from jtcse_jax.runtime.failure import one_line_errors
from jtcse_jax.runtime.files import replace
from jtcse_jax.user_path import user_path

RESULTS = "results.json"
LEAST_SECONDS = 10  # no part starts with less time left
OBJECTIVES = ("tncse", "jtcse")


@dataclass(frozen=True)
class Part:
    """A command that writes its results to `--output`."""

    name: str
    limit: float  #: seconds
    command: tuple[str, ...]  #: arguments of Python, without `--output`
    package: str | None = None  #: it is skipped if this package is absent


@dataclass(frozen=True)
class Sizes:
    """What the parts run on."""

    model: str
    batches: tuple[int, ...]  #: sentences of the training steps
    smoke: tuple[str, ...]  #: arguments
    rounds: tuple[str, ...]  #: arguments of every training step
    encode: tuple[str, ...]  #: arguments
    memory: tuple[int, int]  #: sentences of a step, and of its micro-batches


USUAL = Sizes("base", (64, 256, 512), (), (), (), (65536, 512))
SMALL = Sizes(
    model="tiny",
    batches=(4,),
    smoke=("--steps", "4", "--dtype", "float32"),
    rounds=("--batches", "1", "--rounds", "1", "--seconds", "0"),
    encode=("--sentences", "16", "--rounds", "1", "--batch-size", "8"),
    memory=(16, 8),
)


@one_line_errors
def main() -> None:
    """Runs the parts, prints how each ended and writes their results."""
    options = _read_options()
    folder = user_path(options.output)
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    every = {part.name: part for part in make_parts(SMALL if options.small else USUAL, options)}
    unknown = set(options.parts or ()) - set(every)
    if unknown:
        raise UserError(f"--parts {' '.join(sorted(unknown))}: choose from {' '.join(every)}.")
    chosen = [every[name] for name in options.parts or every]
    show("accelerator", run_parts(chosen, options.budget, folder))


def _read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--budget", type=float, required=True, help="seconds for all parts")
    parser.add_argument("--output", default="runs/accelerator", help="a folder")
    parser.add_argument("--parts", nargs="+", help="only these, in this order")
    parser.add_argument("--small", action="store_true", help="small sizes, to rehearse on a CPU")
    add_options(parser)
    return parser.parse_args()


def make_parts(sizes: Sizes, options: argparse.Namespace) -> list[Part]:
    """All parts, most important first; `options` are those of the command."""
    folder = user_path(options.output)
    text = ("--tokenizer", options.tokenizer) + (("--text", options.text) if options.text else ())
    size = (*text, "--size", sizes.model)

    def step(objective: str, batch: int, *against: str) -> tuple[str, ...]:
        chosen = ("--objective", objective, "--batch", str(batch), "--turns", "1")
        return ("-m", "benchmarks.train_step", *size, *sizes.rounds, *chosen, "--against", *against)

    def encode(towers: str, *against: str) -> tuple[str, ...]:
        chosen = (*sizes.encode, "--towers", towers, "--turns", "1")
        return ("-m", "benchmarks.encode", *size, *chosen, "--against", *against)

    first, *larger = sizes.batches
    sentences, micro = map(str, sizes.memory)
    parts = [
        Part("device", 60, ("-m", "benchmarks.device")),
        Part("smoke", 240, ("-m", "benchmarks.smoke", *sizes.smoke)),
        Part("limits", 60, ("-m", "benchmarks.limits")),
    ]
    for objective in OBJECTIVES:
        name = f"{objective}_{first}"
        trace = str(folder / f"trace_{name}")
        program = ("--hlo", f"{trace}/{PROGRAM}", "--steps", str(TRACED))
        parts += [
            Part(f"train_{name}", 200, (*step(objective, first), "--trace", trace)),
            Part(f"trace_{name}", 60, ("-m", "benchmarks.trace", trace, *program)),
        ]
    parts += [
        Part(f"train_{objective}_{batch}", 200, step(objective, batch))
        for batch in larger
        for objective in OBJECTIVES
    ]
    published = ("as published", "as published, bfloat16")
    parts += [
        Part(
            *(f"opponents_{objective}", 200, step(objective, first, "well made", *published)),
            package="torch",
        )
        for objective in OBJECTIVES
    ]
    return [
        *parts,
        # In a part of its own, because torch.compile takes minutes.
        Part("compiled_tncse", 300, step("tncse", first, "well made, compiled"), "torch"),
        Part("encode_1", 120, encode("1")),
        Part("encode_2", 120, encode("2")),
        Part(
            *("encode_opponents", 200, encode("1", "sentence-transformers", "length-sorted-torch")),
            package="sentence_transformers",
        ),
        Part(
            "memory",
            240,
            ("-m", "benchmarks.scaling", *size, "--objective", "tncse", "--rounds", "1")
            + ("--batch", sentences, "--micro-batch", micro),
        ),
        Part("cold_start", 240, ("-m", "benchmarks.cold_start", *size, "--turns", "1")),
    ]


def run_parts(parts: Iterable[Part], budget: float, folder: Path) -> list[dict[str, Any]]:
    """Runs parts within `budget` seconds and writes RESULTS after each; returns a row for each.

    A row has the part's name, its status ("done", "failed", "cut" or "skipped"), its seconds, its
    limit and the reason of any other status than done.
    """
    began = time.monotonic()
    records: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as temporary:
        compiled = os.environ.get("JAX_COMPILATION_CACHE_DIR", f"{temporary}/compiled")
        # Also what a killed part leaves behind is temporary.
        environment = os.environ | {"TMPDIR": temporary, "JAX_COMPILATION_CACHE_DIR": compiled}
        for part in parts:
            left = budget - (time.monotonic() - began)
            record = run_part(part, left, folder, environment)
            reason = f": {record['reason']}" if record["reason"] else ""
            print(f"{part.name}: {record['status']}{reason}", flush=True)
            result = folder / f"{part.name}.json"
            content = json.loads(result.read_text()) if result.is_file() else None
            records.append(record | {"result": content})
            spent = time.monotonic() - began
            whole = {"budget": budget, "seconds": spent, "parts": records}
            replace(folder / RESULTS, json.dumps(whole, indent=1) + "\n")
    return [{key: value for key, value in one.items() if key != "result"} for one in records]


def run_part(part: Part, left: float, folder: Path, environment: dict[str, str]) -> dict[str, Any]:
    """Runs a part for at most `left` seconds; returns its row."""
    result = folder / f"{part.name}.json"
    result.unlink(missing_ok=True)  # of an earlier run
    limit = min(part.limit, left)

    def row(status: str, reason: str = "", seconds: float = 0.0) -> dict[str, Any]:
        fields = {"status": status, "seconds": seconds, "limit": limit, "reason": reason}
        return {"part": part.name, **fields}

    if part.package and importlib.util.find_spec(part.package) is None:
        return row("skipped", f"{part.package} is not installed")
    if left < LEAST_SECONDS:
        return row("skipped", f"{max(left, 0):.0f} s of the budget are left")
    began = time.monotonic()
    log = folder / f"{part.name}.log"
    with log.open("w") as file:
        process = subprocess.Popen(
            [sys.executable, *part.command, "--output", str(result)],
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,  # a group, which is ended as a whole
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            # The whole group, also what is left of one that ended by itself.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    seconds = time.monotonic() - began
    if status is None:
        return row("cut", f"after {limit:.0f} s; last line: {_last_line(log)}", seconds)
    if status:
        return row("failed", f"status {status}: {_last_line(log)}", seconds)
    return row("done", "", seconds)


def _last_line(log: Path) -> str:
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines()]
    return next((line for line in reversed(lines) if line), "it printed nothing")


if __name__ == "__main__":
    main()
