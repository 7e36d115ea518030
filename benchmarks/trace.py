"""The kernels of a profiler's trace as tables, with the bytes and products of the program beside.

    python -m jtcse_jax.train --profile ...         writes a trace of ten steps to WORKDIR/profile
    python -m benchmarks.trace WORKDIR/profile --steps 10 --hlo step.hlo.gz --output trace.json

Prints how long the device was busy, its time by kind of operation, and for each of the longest
kernels its launches and time per step, and the bandwidth and product rate it reached. These and the
kind need the text of the program that ran, plain or gzipped; without it kernels have only times.
"""

import argparse
import gzip
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.program import hlo
from benchmarks.program.counts import Launch, count
from benchmarks.program.kinds import OTHER
from benchmarks.race import report, show
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.failure import one_line_errors
from jtcse_jax.runtime.files import check_replaceable


class Event(NamedTuple):
    """One execution of a kernel on the device."""

    kernel: str
    instruction: str  #: the HLO instruction it belongs to, or ""
    start: float  #: in nanoseconds
    duration: float  #: in nanoseconds


@dataclass
class _Kernel:
    instruction: str = ""
    launches: int = 0
    nanoseconds: float = 0.0


@one_line_errors
def main() -> None:
    """Reads the trace, prints the tables and writes them as JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="of the trace")
    parser.add_argument("--hlo", type=Path, help="text of the program, from benchmarks.compiled")
    parser.add_argument("--steps", type=int, default=10, help="steps in the trace")
    parser.add_argument("--top", type=int, default=20, help="kernels to print")
    parser.add_argument("--output", type=check_replaceable, help="a JSON file")
    options = parser.parse_args()
    if options.steps < 1:
        raise UserError(f"--steps {options.steps}: use at least 1.")
    launches = read_launches(options.hlo) if options.hlo else {}
    events = list(read_events(options.folder))
    rows = kernels(events, launches, options.steps)
    kinds = by_kind(rows)
    summary = summarize(events, options.steps)
    show("trace, per step", [summary])
    show("trace, by kind of operation", kinds)
    report("trace", rows[: options.top], options.output, summary=summary, kinds=kinds)


def read_events(folder: Path) -> Iterator[Event]:
    """The kernels that ran on the first device. Raises UserError if the folder has no trace."""
    from jax.profiler import ProfileData

    files = sorted(folder.glob("**/*.xplane.pb"))
    if not files:
        raise UserError(f"{folder} has no *.xplane.pb: name the folder of a profiler's trace.")
    planes = list(ProfileData.from_file(str(files[-1])).planes)
    device = next((p for p in planes if re.search(r"/device:(GPU|TPU)", p.name)), None)
    if device is None:
        raise UserError(f"{files[-1]} has no GPU or TPU: its steps ran on a CPU.")
    for line in device.lines:
        # The other lines repeat the same time by step and by module.
        if line.name.startswith("Stream") or line.name == "XLA Ops":
            for event in line.events:
                stats = dict(event.stats)
                instruction = str(stats.get("hlo_op") or stats.get("tf_op") or "")
                yield Event(event.name, instruction, event.start_ns, event.duration_ns)


def read_launches(path: Path) -> dict[str, Launch]:
    """The launches of a program, by names as kernels have them. Raises UserError if it is none."""
    try:
        raw = path.read_bytes()
        text = (gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw).decode()
        return {_plain(each.name): each for each in count(hlo.parse(text)).launches}
    except OSError as error:
        raise UserError(f"--hlo {path} cannot be read: {error.strerror or error}.") from error
    except (ValueError, EOFError) as error:
        raise UserError(f"--hlo {path} is not the text of a compiled program.") from error


def summarize(events: list[Event], steps: int) -> dict[str, float]:
    """Kernels per step, the time from the first to the last, and the device's busy share of it."""
    busy = end = 0.0
    for event in sorted(events, key=lambda event: event.start):
        stop = event.start + event.duration
        busy += max(0.0, stop - max(event.start, end))
        end = max(end, stop)
    window = end - min((event.start for event in events), default=0.0)
    return {
        "kernels": len(events) / steps,
        "ms": window / steps / 1e6,
        "busy ms": busy / steps / 1e6,
        "busy %": 100 * busy / max(window, 1.0),
    }


def kernels(
    events: Iterable[Event], launches: dict[str, Launch], steps: int
) -> list[dict[str, Any]]:
    """A row for each kernel, the one with most time first."""
    found: dict[str, _Kernel] = defaultdict(_Kernel)
    for event in events:
        kernel = found[event.kernel]
        kernel.instruction = event.instruction
        kernel.launches += 1
        kernel.nanoseconds += event.duration
    total = sum(kernel.nanoseconds for kernel in found.values()) or 1.0
    rows = []
    for name, kernel in sorted(found.items(), key=lambda pair: -pair[1].nanoseconds):
        launch = launches.get(_plain(kernel.instruction)) or launches.get(_plain(name))
        each = max(kernel.nanoseconds / kernel.launches, 1.0)
        rows.append(
            {
                "kernel": name,
                "kind": launch.kind if launch else OTHER,
                "launches": kernel.launches / steps,
                "us each": each / 1e3,
                "ms": kernel.nanoseconds / steps / 1e6,
                "share": f"{kernel.nanoseconds / total:.1%}",
                "GB/s": launch.bytes / each if launch else None,
                "TFLOP/s": launch.flops / each / 1e3 if launch else None,
                "result": launch.result if launch else "",
            }
        )
    return rows


def by_kind(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of `kernels` summed by kind, the one with most time first."""
    totals: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        totals[row["kind"]][0] += row["launches"]
        totals[row["kind"]][1] += row["ms"]
    whole = sum(ms for _, ms in totals.values()) or 1.0
    return [
        {"kind": kind, "launches": launches, "ms": ms, "share": f"{ms / whole:.1%}"}
        for kind, (launches, ms) in sorted(totals.items(), key=lambda pair: -pair[1][1])
    ]


def _plain(name: str) -> str:
    """An instruction's name as in its kernel's: with underscores only."""
    return re.sub(r"[.\-]", "_", name)


if __name__ == "__main__":
    main()
