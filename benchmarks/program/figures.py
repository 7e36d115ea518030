"""The figures of a compiled program: counts, memory, the floor and an estimate of its time."""

import math
from collections import defaultdict
from typing import Any

import jax

from benchmarks.limits import ADAMW_BYTES
from benchmarks.program.counts import Counted, Launch
from benchmarks.program.kinds import KINDS
from benchmarks.program.steps import Case, Lowered
from benchmarks.program.targets import Rates, Target

SMALL = 10**6  # bytes; a launch that moves less costs mostly its own start


def figures(
    name: str,
    case: Case,
    target: Target,
    lowered: Lowered,
    compiled: jax.stages.Compiled,
    counted: Counted,
    seconds: float,
) -> dict[str, Any]:
    """All figures of `step` or `encoder`, in a form that JSON accepts.

    Args:
      name: step or encoder.
      case: what was compiled.
      target: for which devices.
      lowered: the program before it was compiled.
      compiled: the program.
      counted: what it executes.
      seconds: time that the compiler took.
    """
    return {
        **counts(counted),
        **planned_memory(compiled),
        "kinds": by_kind(counted.launches),
        "collectives": transfers(counted),
        "floor_seconds": floor(name, case, target, lowered),
        "estimated_seconds": estimate(counted.launches, target.rates, case.dtype),
        "compile_seconds": seconds,
        "rows": lowered.rows,
        "tokens": lowered.tokens,
        "real_product_flops": lowered.flops,
        "parameters": lowered.parameters,
    }


def counts(counted: Counted) -> dict[str, Any]:
    """Totals of one run on one device."""
    launches = counted.launches
    return {
        "launches": sum(each.times for each in launches),
        "small_launches": sum(each.times for each in launches if each.bytes < SMALL),
        "bytes": sum(each.times * each.bytes for each in launches),
        "upper_bytes": sum(each.times * each.upper_bytes for each in launches),
        "product_flops": math.fsum(each.times * each.flops for each in launches),
        "collective_count": sum(each.times for each in counted.transfers),
        "collective_bytes": sum(each.times * each.bytes for each in counted.transfers),
        "loops_of_unknown_length": counted.unknown_loops,
    }


def planned_memory(compiled: jax.stages.Compiled) -> dict[str, int | None]:
    """The compiler's plan of one device's memory; code is None if the compiler does not tell."""
    plan = compiled.memory_analysis()
    if plan is None:
        names = ("argument_bytes", "temporary_bytes", "code_bytes")
        return dict.fromkeys(names)
    return {
        "argument_bytes": plan.argument_size_in_bytes,
        "temporary_bytes": plan.temp_size_in_bytes,
        "code_bytes": plan.generated_code_size_in_bytes or None,
    }


def by_kind(launches: list[Launch]) -> dict[str, dict[str, float]]:
    """Launches, bytes and operations of each kind, in the order of `KINDS`."""
    table = {kind: {"launches": 0, "bytes": 0, "upper_bytes": 0, "flops": 0.0} for kind in KINDS}
    for each in launches:
        row = table[each.kind]
        row["launches"] += each.times
        row["bytes"] += each.times * each.bytes
        row["upper_bytes"] += each.times * each.upper_bytes
        row["flops"] += each.times * each.flops
    return table


def transfers(counted: Counted) -> list[dict[str, Any]]:
    """The collectives by kind and shapes, those of most bytes first."""
    found: dict[tuple, list[float]] = defaultdict(lambda: [0, 0])
    for each in counted.transfers:
        total = found[each.kind, each.shapes]
        total[0] += each.times
        total[1] += each.times * each.bytes
    rows = [
        {"kind": kind, "shapes": list(shapes), "count": times, "bytes": moved}
        for (kind, shapes), (times, moved) in found.items()
    ]
    return sorted(rows, key=lambda row: -row["bytes"])


def floor(name: str, case: Case, target: Target, lowered: Lowered) -> float:
    """The least seconds: products over real tokens, and the optimizer's or the weights' bytes."""
    rates, devices = target.rates, len(target.devices)
    products = lowered.flops / devices / product_rate(rates, case.dtype)
    moved, shares = 4, 1
    if name == "step":
        moved, shares = ADAMW_BYTES[case.dtype], case.tower_devices * case.fsdp_devices
    return products + moved * lowered.parameters / shares / rates.bandwidth


def estimate(launches: list[Launch], rates: Rates, dtype: str) -> float:
    """Seconds of one run, without transfers between devices.

    Each launch takes the longer of its bytes at the assumed bandwidth and its products at the
    assumed rate, and the time of a start.
    """
    rate = product_rate(rates, dtype)
    return math.fsum(
        each.times * (max(each.bytes / rates.bandwidth, each.flops / rate) + rates.launch)
        for each in launches
    )


def product_rate(rates: Rates, dtype: str) -> float:
    """Operations per second of large products in `dtype`."""
    return rates.bfloat16 if dtype == "bfloat16" else rates.float32


def assumptions(rates: Rates, dtype: str) -> str:
    """The assumptions of floor and estimate, in a sentence."""
    return (
        f"Assumed: {rates.bandwidth / 1e9:,.0f} GB/s, {product_rate(rates, dtype) / 1e12:,.0f} "
        f"TFLOP/s of {dtype} products, {rates.launch * 1e6:.1f} us to start each launch "
        f"({rates.basis}). Transfers between devices are not in the estimate."
    )
