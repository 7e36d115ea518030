"""Measures contenders side by side: one process at a time, in several turns.

Each contender has its own process, so that the thread pools and the memory of one library do not
disturb another (two idle gigabytes beside a step halve its speed on a small machine). Turns
alternate, so that a temporary slowdown of the machine does not affect only one contender. They
share a folder of compiled programs, so that only the first turn compiles.
"""

import json
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import jax
from rich.console import Console
from rich.table import Table

from jtcse_jax.errors import UserError
from jtcse_jax.runtime.environment import environment
from jtcse_jax.runtime.files import replace as write

# The parent measures too, and must leave the GPU's memory to the contenders.
os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")

UNITS = "units"  # among the numbers of a call: how many units of work it did, if not one
# Variables that name a folder of compiled programs; one that is set already is left as it is.
_COMPILED = ("JAX_COMPILATION_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


@dataclass(frozen=True)
class Contender:
    """The work of one process: `factory(**arguments)` returns a function that does one unit of it.

    The function has no arguments, returns when the work is done (not when it is dispatched), and
    may return a dictionary of numbers to report beside the time. If a call does several units, its
    numbers tell how many under `UNITS`.
    """

    factory: Callable[..., Callable[[], dict[str, float] | None]]
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)  #: variables, set before its start


@dataclass(frozen=True)
class Outcome:
    """The measurements of a contender."""

    seconds: list[float]  #: of a unit, in each round, without the warm-up
    start_seconds: float  #: of the call of the factory, the best of all turns
    first_seconds: float  #: of the first call of the first turn, compilation included
    peak_bytes: int  #: see `peak_memory`
    peak_of: str  #: the memory of the peak, "device" or "host"
    numbers: dict[str, float]  #: the result of the last call

    @property
    def median(self) -> float:
        """Median seconds of a unit."""
        return statistics.median(self.seconds)


def race(
    contenders: dict[str, Contender],
    rounds: int,
    warmup: int = 1,
    turns: int = 2,
    failed: dict[str, str] | None = None,
) -> dict[str, Outcome]:
    """The outcome of each contender over `turns` processes of `rounds` calls each.

    `warmup` calls of each process do not count. A contender that fails has no outcome; its own
    error message is added to `failed`, or raised as UserError if that is None.
    """
    outcomes: dict[str, list[Outcome]] = {name: [] for name in contenders}
    with tempfile.TemporaryDirectory() as folder:
        shared = {name: f"{folder}/{name}" for name in _COMPILED if name not in os.environ}
        for _ in range(turns):
            for name in list(outcomes):
                contender = contenders[name]
                contender = replace(contender, environment=shared | contender.environment)
                try:
                    outcomes[name].append(_run(contender, rounds, warmup))
                except UserError as error:
                    if failed is None:
                        raise UserError(f"{name}: {error}") from error
                    failed[name] = str(error)
                    del outcomes[name]
    return {
        name: Outcome(
            seconds=[second for turn in every for second in turn.seconds],
            start_seconds=min(turn.start_seconds for turn in every),
            first_seconds=every[0].first_seconds,
            peak_bytes=max(turn.peak_bytes for turn in every),
            peak_of=every[0].peak_of,
            numbers=every[-1].numbers,
        )
        for name, every in outcomes.items()
    }


def _run(contender: Contender, rounds: int, warmup: int) -> Outcome:
    context = multiprocessing.get_context("spawn")
    end, theirs = context.Pipe()
    # A child inherits the environment at its start; its libraries read it when they are imported.
    kept = {key: os.environ.get(key) for key in contender.environment}
    os.environ.update(contender.environment)
    process = context.Process(target=_serve, args=(contender, theirs), daemon=True)
    process.start()
    _restore(kept)
    theirs.close()  # so that waiting for the child ends when the child ends
    try:
        start = _answer(end)
        answers = [_answer(end, ask="work") for _ in range(warmup + rounds)]
        peak = _answer(end, ask="peak")
    finally:
        end.close()  # the child ends by itself when the pipe is closed
        process.join(10)
        process.kill()
        process.join()
    return Outcome(
        seconds=[answer["seconds"] for answer in answers[warmup:]],
        start_seconds=start["seconds"],
        first_seconds=answers[0]["seconds"],
        **peak,
        numbers=answers[-1]["numbers"],
    )


def report(
    title: str,
    rows: list[dict[str, Any]],
    output: Path | None,
    failed: dict[str, str] | None = None,
    **fields: Any,
) -> None:
    """Prints `rows` as a table and writes them, with versions and device, as JSON to `output`.

    All rows have the same keys, which are the column titles; numbers are printed to three digits.
    Raises UserError if the file cannot be written, and, when all is written, if `failed` names a
    contender.
    """
    failed = failed or {}
    fields |= {"rows": rows, "failed": failed}
    result = {"benchmark": title, **fields, "environment": environment()}
    result["environment"]["cpus"] = str(len(os.sched_getaffinity(0)))
    show(title, rows)
    if output:
        write(output, json.dumps(result, indent=1) + "\n")
    if failed:
        raise UserError(" ".join(f"{name}: {reason}" for name, reason in failed.items()))


def show(title: str, rows: list[dict[str, Any]]) -> None:
    """Prints `rows` as a table; their keys are the column titles."""
    table = Table(title=title)
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    console = Console()
    # No folding when the output is a file.
    console.width = max(console.width, 100 if console.is_terminal else 200)
    console.print(table)


def outcome_fields(outcome: Outcome) -> dict[str, Any]:
    """The outcome in a form that JSON accepts."""
    return asdict(outcome) | {"median": outcome.median}


def _shown(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _serve(contender: Contender, end) -> None:
    try:
        began = time.perf_counter()
        work = contender.factory(**contender.arguments)
        end.send({"seconds": time.perf_counter() - began})
        while end.recv() == "work":
            began = time.perf_counter()
            numbers = work() or {}
            seconds = time.perf_counter() - began
            end.send({"seconds": seconds / numbers.get(UNITS, 1), "numbers": numbers})
        end.send(dict(zip(("peak_bytes", "peak_of"), peak_memory(), strict=True)))
    except EOFError:
        return
    except Exception as error:
        end.send({"error": f"{type(error).__name__}: {error}"})


def peak_memory() -> tuple[int, str]:
    """Peak bytes of this process, and of which memory: "device" or "host".

    On a GPU or TPU they are those that its allocator handed out, to torch if torch uses CUDA, and
    else to jax. On a CPU they are the process's resident memory.
    """
    host = memory("VmHWM")
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        return torch.cuda.max_memory_allocated(), "device"
    peak = (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")
    return (peak, "device") if peak else (host, "host")


def memory(name: str) -> int:
    """Bytes in a line of /proc/self/status (Linux): VmRSS, VmHWM (its peak), RssAnon."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{name}:"))


def _answer(end, ask: str | None = None) -> dict[str, Any]:
    try:
        if ask:
            end.send(ask)
        answer = end.recv()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        raise UserError("ended without an answer: it may have run out of memory.") from None
    if "error" in answer:
        raise UserError(answer["error"])
    return answer


def _restore(kept: dict[str, str | None]) -> None:
    for key, value in kept.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value
