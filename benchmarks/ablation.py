"""Compares the variants of one or more seeds: means, deviations and paired differences.

    python benchmarks/ablation.py runs/ablation_small/*

Each argument is the workdir of a pipeline of `configs/ablation_small.py`. The score is the average
of the seven STS tasks where they were evaluated, else the dev score; `start` is the pair of SimCSE
towers that all variants start from, which the twins' step 0 scored on the dev set.
"""

import json
import sys
from pathlib import Path

import numpy as np
import rich
from rich.table import Table

REFERENCE = "jtcse"


def main(workdirs: list[Path]) -> None:
    rows = [read_scores(workdir) for workdir in workdirs]
    table = Table(
        "variant", "seeds", "dev", "seven tasks", f"dev, minus {REFERENCE}", f"minus {REFERENCE}"
    )
    for variant in rows[0]:
        present = [row for row in rows if variant in row]
        dev, sts = (column(present, variant, key) for key in ("dev", "average"))
        paired = [row for row in present if REFERENCE in row]
        differences = (
            column(paired, variant, key) - column(paired, REFERENCE, key)
            for key in ("dev", "average")
        )
        cells = (spread(values) for values in (dev, sts, *differences))
        table.add_row(variant, str(len(present)), *cells)
    rich.print(table)


def read_scores(workdir: Path) -> dict[str, dict[str, float | None]]:
    """Dev score and average of the seven tasks, by variant; first of all, that of the start."""
    found = {}
    for path in sorted(workdir.glob("*/finished.json"), key=lambda path: path.stat().st_mtime):
        row = json.loads(path.read_text())
        found[row["stage"]] = {"dev": row["dev"], "average": row["sts"].get("average")}
    log = workdir / REFERENCE / "metrics.jsonl"
    if log.is_file():
        first = json.loads(log.read_text().splitlines()[0])
        found = {"start": {"dev": 100 * first["dev_spearman"], "average": None}} | found
    return found


def column(rows: list[dict], variant: str, key: str) -> np.ndarray:
    return np.array([row[variant][key] for row in rows], float)


def spread(values: np.ndarray) -> str:
    """Mean and, of several, the standard deviation of a single value."""
    if not len(values) or np.isnan(values).any():
        return ""
    deviation = f" ± {values.std(ddof=1):.2f}" if len(values) > 1 else ""
    return f"{values.mean():.2f}{deviation}"


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main([Path(name) for name in sys.argv[1:]])
