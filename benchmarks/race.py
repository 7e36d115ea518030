"""Contenders side by side: each in a process of its own, all asked in turn, round after round.

Turns, so that a machine that slows down slows all of them; processes of their own, so that the
thread pools and the memory of one library are not in the way of another.
"""

import importlib
import json
import multiprocessing
import os
import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from jtcse_jax.environment import environment


@dataclass(frozen=True)
class Contender:
    """What one process runs: `factory(**arguments)` gives a function that does one unit of work.

    The function takes nothing, returns when the work is done (not when it is dispatched), and may
    return a dictionary of numbers that are then shown beside the time.
    """

    factory: Callable[..., Callable[[], dict[str, float] | None]]
    arguments: dict[str, Any] = field(default_factory=dict)
    environment: dict[str, str] = field(default_factory=dict)  #: variables, set before it starts


@dataclass(frozen=True)
class Outcome:
    """What became of a contender."""

    seconds: list[float]  #: of each round, warm-up left out
    start_seconds: float  #: from the call of the factory to its return
    first_seconds: float  #: the first call, compilation included
    peak_bytes: int  #: most memory of the process so far, of the host
    numbers: dict[str, float]  #: what the last call returned

    @property
    def median(self) -> float:
        """Median seconds of a call."""
        return statistics.median(self.seconds)


def race(contenders: dict[str, Contender], rounds: int, warmup: int = 1) -> dict[str, Outcome]:
    """The outcome of each contender, after `warmup` calls that do not count and `rounds` turns.

    Raises RuntimeError with the child's own words where one fails.
    """
    context = multiprocessing.get_context("spawn")
    ends, processes, starts = {}, [], {}
    try:
        for name, contender in contenders.items():
            ends[name], theirs = context.Pipe()
            process = context.Process(target=_serve, args=(contender, theirs), daemon=True)
            # A child inherits the environment of its start: its libraries read it when imported.
            kept = {key: os.environ.get(key) for key in contender.environment}
            os.environ.update(contender.environment)
            process.start()
            _restore(kept)
            processes.append(process)
            starts[name] = _answer(ends[name], name)
        answers: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
        for _ in range(warmup + rounds):
            for name, end in ends.items():
                end.send(True)
                answers[name].append(_answer(end, name))
        return {
            name: Outcome(
                seconds=[answer["seconds"] for answer in every[warmup:]],
                start_seconds=starts[name]["seconds"],
                first_seconds=every[0]["seconds"],
                peak_bytes=every[-1]["peak_bytes"],
                numbers=every[-1]["numbers"],
            )
            for name, every in answers.items()
        }
    finally:
        for process in processes:
            process.kill()


def report(
    title: str, rows: list[dict[str, Any]], output: str | None, **fields: Any
) -> dict[str, Any]:
    """Prints `rows` as a table and writes them, with versions and device, as JSON to `output`.

    All rows have the same keys, which head the columns; numbers are shown to three digits.
    """
    result = {"benchmark": title, **fields, "rows": rows, "environment": environment()}
    result["environment"]["cpus"] = str(len(os.sched_getaffinity(0)))
    table = Table(title=title)
    for number, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if number else "left", overflow="fold")
    for row in rows:
        table.add_row(*(_shown(value) for value in row.values()))
    Console(width=max(100, Console().width)).print(table)
    if output:
        Path(output).write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def outcome_fields(outcome: Outcome) -> dict[str, Any]:
    """The outcome as JSON."""
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
        module = importlib.import_module(contender.factory.__module__)
        work = getattr(module, contender.factory.__name__)(**contender.arguments)
        end.send({"seconds": time.perf_counter() - began})
        while end.recv():
            began = time.perf_counter()
            numbers = work() or {}
            end.send(
                {
                    "seconds": time.perf_counter() - began,
                    "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
                    "numbers": numbers,
                }
            )
    except EOFError:
        return
    except Exception as error:
        end.send({"error": f"{type(error).__name__}: {error}"})
        raise


def _answer(end, name: str) -> dict[str, Any]:
    try:
        answer = end.recv()
    except EOFError:
        raise RuntimeError(f"{name} ended without an answer") from None
    if "error" in answer:
        raise RuntimeError(f"{name}: {answer['error']}")
    return answer


def _restore(kept: dict[str, str | None]) -> None:
    for key, value in kept.items():
        if value is None:
            os.environ.pop(key, None)
        else:
            os.environ[key] = value
