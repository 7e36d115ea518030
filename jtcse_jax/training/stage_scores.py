"""The scores of a pipeline's stages: a row per stage, the table, and the best stage."""

import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from jtcse_jax.config import Config
from jtcse_jax.evaluation.development import METRIC, Development
from jtcse_jax.store.workdir import METRICS
from jtcse_jax.training.metrics import read_jsonl

Row = dict[str, Any]


def stage_row(name: str, config: Config, taken: int | None = None) -> Row:
    """Returns stage, step, seconds, sentences_per_second, dev (or None) and collapsed, by the log.

    `step` is the model's step, by default the best one. `seconds` is the training time of all steps
    at the median logged speed; compiling, evaluating and saving are not included.
    """
    lines = read_jsonl(Path(config.workdir) / METRICS)
    trained = [line for line in lines if "loss" in line]
    rate = statistics.median(line["sentences_per_second"] for line in trained)
    scores = {line["step"]: line[METRIC] for line in lines if METRIC in line}
    # Of equal scores the later step counts, as in `Checkpoints.best_step`.
    best = max(scores, key=lambda step: (scores[step], step), default=None)
    step = best if taken is None else taken
    return {
        "stage": name,
        "step": trained[-1]["step"] if step is None else step,
        "seconds": trained[-1]["step"] * config.data.batch_size / rate if rate else None,
        "sentences_per_second": rate,
        "dev": 100 * scores[step] if step in scores else None,
        "collapsed": any(
            "text_collapsed" in line for line in lines if line["step"] == lines[-1]["step"]
        ),
    }


def print_table(rows: list[Row]) -> None:
    """Prints the stages, and below them the seven STS tasks if they were scored."""
    stages = _table("step", "training", "sentences/s", "dev")
    for row in rows:
        time = "" if row["seconds"] is None else f"{row['seconds'] / 60:.1f} min"
        speed = f"{row['sentences_per_second']:.1f}"
        stages.add_row(row["stage"], str(row["step"]), time, speed, _score(row["dev"]))
    rich.print(stages)
    scored = [row for row in rows if row["sts"]]
    if scored:
        tasks = _table(*scored[0]["sts"])
        for row in scored:
            tasks.add_row(row["stage"], *map(_score, row["sts"].values()))
        rich.print(tasks)


def warning(name: str, configs: Mapping[str, Config], rows: Mapping[str, Row | None]) -> str | None:
    """Returns what is wrong with a finished stage: it collapsed, or an earlier one scores higher.

    None if nothing is wrong. Only finished stages with the same dev set are compared.
    """
    finished = {each: row for each, row in rows.items() if row is not None}
    row, dev = finished.get(name), configs[name].data.dev
    if row is not None and row.get("collapsed"):
        return f"stage {name} has collapsed: it cannot tell different sentences apart"
    if row is None or not dev:
        return None
    if row["dev"] is None:
        return f"stage {name} has no dev score: its vectors had collapsed at every evaluation"
    best = _best_stage(dev, configs, finished)
    if finished[best]["dev"] == row["dev"]:
        return None
    difference = Development(dev).difference(
        *((Path(configs[each].workdir), finished[each]["step"]) for each in (name, best))
    )
    interval = "" if difference is None else f": {difference}"
    return f"stage {name} is below stage {best} on the dev set{interval}"


def verdict(configs: Mapping[str, Config], rows: Mapping[str, Row], exported: str) -> list[str]:
    """The best stage on the dev set, its gain over the start of the first, and the exported stage.

    `exported` is a stage, or STAGE#K. Without a dev score, no lines unless this stage collapsed.
    """
    stage = exported.partition("#")[0]
    scored = [name for name, row in rows.items() if row["dev"] is not None]
    if not scored:
        reason = warning(stage, configs, rows)
        return [f"exported: {reason}"] if reason else []
    dev = configs[scored[-1]].data.dev
    assert dev is not None  # a stage without a dev set has no score
    best = _best_stage(dev, configs, rows)
    first = next(name for name in scored if configs[name].data.dev == dev)
    start = Path(configs[first].workdir), 0
    end = Path(configs[best].workdir), rows[best]["step"]
    gain = Development(dev).difference(end, start)
    against = "it is the start" if start == end else f"difference from the start: {gain or '?'}"
    lines = [f"best stage on the dev set: {best}, {rows[best]['dev']:.2f}; {against}"]
    if exported != best:
        lines.append(f"exported: {warning(stage, configs, rows) or f'stage {exported}'}")
    return lines


def _best_stage(dev: str, configs: Mapping[str, Config], rows: Mapping[str, Row]) -> str:
    """The finished stage with the highest score on a dev set; the later one if scores are equal."""
    scored = [
        name
        for name, row in rows.items()
        if row["dev"] is not None and configs[name].data.dev == dev
    ]
    return max(reversed(scored), key=lambda name: rows[name]["dev"])


def _table(*names: str) -> Table:
    numbers = (Column(name, justify="right", no_wrap=True) for name in names)
    return Table("stage", *numbers, box=SIMPLE_HEAD, pad_edge=False)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
