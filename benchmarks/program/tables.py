"""Tables of a program's figures, and of the difference between two runs."""

from typing import Any

_GB, _MB = 1e9, 1e6
# Title, key and divisor of each line.
_LINES = (
    ("launches", "launches", 1),
    ("launches under 1 MB", "small_launches", 1),
    ("moved, GB", "bytes", _GB),
    ("moved, GB, every operand whole", "upper_bytes", _GB),
    ("products, TFLOP", "product_flops", 1e12),
    ("products over real tokens, TFLOP, all devices", "real_product_flops", 1e12),
    ("arguments, GB", "argument_bytes", _GB),
    ("temporary memory, GB", "temporary_bytes", _GB),
    ("generated code, MB", "code_bytes", _MB),
    ("collectives", "collective_count", 1),
    ("collectives, MB", "collective_bytes", _MB),
    ("loops of unknown length", "loops_of_unknown_length", 1),
    ("rows of a batch", "rows", 1),
    ("floor, ms", "floor_seconds", 1e-3),
    ("estimate, ms", "estimated_seconds", 1e-3),
    ("compiling, s", "compile_seconds", 1),
)


def overview(programs: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each figure and a column for each program."""
    return [
        {"per device": title}
        | {name: _scaled(one.get(key), divisor) for name, one in programs.items()}
        for title, key, divisor in _LINES
    ]


def kinds(program: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each kind of operation."""
    return [
        {
            "kind": kind,
            "launches": row["launches"],
            "moved, GB": row["bytes"] / _GB,
            "share": f"{row['bytes'] / max(program['bytes'], 1):.0%}",
            "GB, operands whole": row["upper_bytes"] / _GB,
            "products, TFLOP": row["flops"] / 1e12,
        }
        for kind, row in program["kinds"].items()
    ]


def collectives(program: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each collective of other shapes."""
    return [
        {
            "collective": row["kind"],
            "count": row["count"],
            "MB in all": row["bytes"] / _MB,
            "arrays": _listed(row["shapes"]),
        }
        for row in program["collectives"]
    ]


def largest(launches: list[Any], number: int) -> list[dict[str, Any]]:
    """The launches that move most in all their executions."""
    chosen = sorted(launches, key=lambda each: -each.times * each.bytes)[:number]
    return [
        {
            "launch": each.name,
            "kind": each.kind,
            "times": each.times,
            "MB each": each.bytes / _MB,
            "GFLOP each": each.flops / 1e9,
            "result": each.result,
            "from": each.source[-70:],
        }
        for each in chosen
    ]


def differences(before: dict[str, Any], now: dict[str, Any]) -> list[dict[str, Any]]:
    """A row for each figure that both runs of one program have."""
    rows = []
    for title, key, divisor in _LINES:
        rows.append(_difference(title, before.get(key), now.get(key), divisor))
    for kind, row in now["kinds"].items():
        old = before["kinds"].get(kind, {})
        rows.append(_difference(f"{kind}, launches", old.get("launches"), row["launches"], 1))
        rows.append(_difference(f"{kind}, GB", old.get("bytes"), row["bytes"], _GB))
    return [row for row in rows if row["before"] is not None and row["now"] is not None]


def _difference(title: str, before: float | None, now: float | None, divisor: float) -> dict:
    both = before is not None and now is not None
    change = f"{now / before - 1:+.1%}" if both and before else None
    return {
        "figure": title,
        "before": _scaled(before, divisor),
        "now": _scaled(now, divisor),
        "change": change,
    }


def _scaled(value: float | None, divisor: float) -> float | int | None:
    return value if value is None or divisor == 1 else value / divisor


def _listed(shapes: list[str]) -> str:
    shown = ", ".join(shapes[:4])
    return shown if len(shapes) <= 4 else f"{shown} and {len(shapes) - 4} more"
