"""What the stages of a pipeline score: a row for each, the table, and which of them is the best."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import rich
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table

from jtcse_jax.config import Config
from jtcse_jax.evaluation.comparison import Difference
from jtcse_jax.evaluation.development import METRIC, Development
from jtcse_jax.metrics import JSONL, read_jsonl

Row = dict[str, Any]


def stage_row(name: str, config: Config, taken: int | None = None) -> dict[str, Any]:
    """What a stage's log says: stage, step, seconds, sentences_per_second, dev (or None).

    `step` is that of the model, by default the best; `seconds` the training time of all steps at
    the logged speed: compiling, evaluating and saving are not in it.
    """
    lines = read_jsonl(Path(config.workdir) / JSONL)
    trained = [line for line in lines if "loss" in line]
    rate = trained[-1]["sentences_per_second"]
    scores = {line["step"]: line[METRIC] for line in lines if METRIC in line}
    # Of equal scores the later, as `Checkpoints.best_step` takes it.
    best = max(filter(None, scores), key=lambda step: (scores[step], step), default=None)
    step = best if taken is None else taken
    return {
        "stage": name,
        "step": trained[-1]["step"] if step is None else step,
        "seconds": trained[-1]["step"] * config.data.batch_size / rate if rate else None,
        "sentences_per_second": rate,
        "dev": 100 * scores[step] if step in scores else None,
    }


def print_table(rows: list[dict[str, Any]]) -> None:
    """Prints the stages, and below them the seven tasks where they were scored."""
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


def compare(
    name: str, configs: Mapping[str, Config], rows: Mapping[str, Row | None]
) -> tuple[str, Difference | None]:
    """The best stage on the dev set of stage `name`, and how far `name` is above it.

    Only finished stages count. (`name`, None) if it has no dev score or is the best itself.
    """
    row, dev = rows[name], configs[name].data.dev
    if row is None or row["dev"] is None:
        return name, None
    scored = {
        other: each["dev"]
        for other, each in rows.items()
        if each is not None and each["dev"] is not None and configs[other].data.dev == dev
    }
    best = max(scored, key=lambda other: (scored[other], other == name))
    if best == name:
        return name, None
    steps = [(Path(configs[other].workdir), rows[other]["step"]) for other in (name, best)]
    return best, Development(dev).difference(*steps)


def print_verdict(configs: Mapping[str, Config], rows: Mapping[str, Row]) -> None:
    """Prints which stage is best on the dev set, and its difference from the start of the first.

    Prints nothing for a pipeline without a dev set.
    """
    scored = [name for name, row in rows.items() if row["dev"] is not None]
    if not scored:
        return
    last = scored[-1]
    best, behind = compare(last, configs, rows)
    first = next(name for name in scored if configs[name].data.dev == configs[best].data.dev)
    workdirs = {name: Path(configs[name].workdir) for name in (first, best)}
    gain = Development(configs[best].data.dev).difference(
        (workdirs[best], rows[best]["step"]), (workdirs[first], 0)
    )
    above = "" if gain is None else f"; above the start: {gain}"
    print(f"best stage on the dev set: {best}, {rows[best]['dev']:.2f}{above}")
    if behind is not None:
        print(f"stage {last}, which is exported, against it: {behind}")


def _table(*names: str) -> Table:
    numbers = (Column(name, justify="right", no_wrap=True) for name in names)
    return Table("stage", *numbers, box=SIMPLE_HEAD, pad_edge=False)


def _score(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
