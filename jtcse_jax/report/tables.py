"""The tables of a report: runs, the scores of each suite, and the configs' differences."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jtcse_jax.evaluation.development import METRIC
from jtcse_jax.evaluation.score_table import Table
from jtcse_jax.evaluation.suites import SUITES
from jtcse_jax.report.runs import Run

EMBEDDINGS = (  # the figures of `diagnose_embeddings` in the table
    "uniformity",
    "alignment",
    "effective_rank",
    "anisotropy",
    "mean_norm",
    "length_correlation",
    "length_correlation_given_gold",
)
SAME_PLACE = ("workdir", "cache_dir")  # config fields that always differ


def summary_table(runs: Sequence[Run]) -> Table:
    """The kind, length and best score of each run, one row per run."""
    columns = ("run", "objective", "towers", "steps", "best step", "dev Spearman", "95 % interval")
    rows = []
    for run in runs:
        best = run.best
        towers = run.config.get("model", {}).get("towers", ())
        dev = ["", "", ""]
        if best:
            interval = ""
            if "dev_low" in best and "dev_high" in best:
                interval = f"{100 * best['dev_low']:.2f} to {100 * best['dev_high']:.2f}"
            dev = [str(best["step"]), f"{100 * best[METRIC]:.2f}", interval]
        steps = str(run.trained[-1]["step"]) if run.trained else ""
        rows.append([run.name, run.objective, str(len(towers) or ""), steps, *dev, *_speed(run)])
    note = (
        "Dev Spearman times 100 at the best step, with its bootstrap interval. "
        "Training time is the time of all steps at the last logged speed, without compilation, "
        "evaluation and saving."
    )
    return Table("Runs", (*columns, "sentences/s", "training"), rows, (note,))


def score_tables(
    runs: Sequence[Run], results: Sequence[dict[str, Any]], differences: Mapping[str, Any]
) -> list[Table]:
    """Tables of the evaluated suites, from pipelines' own scores and results of `evaluate`."""
    tables = []
    for suite in SUITES.values():
        found = [
            (run.name, run.scores[suite.name]) for run in runs if suite.name in run.scores
        ] + _of_suite(results, suite.name)
        if found:
            tables += suite.tables(found)
        if suite.differences:
            tables += [suite.differences.table(*item) for item in differences.items()]
    failed = [
        [one["model"], suite, one[suite]["error"]]
        for one in results
        for suite in SUITES
        if "error" in one.get(suite, {})
    ]
    failed += [[one["model"], "all", one["error"]] for one in results if "error" in one]
    if failed:
        tables.append(Table("Not scored", ("model", "suite", "reason"), failed))
    return tables


def embedding_table(found: Iterable[tuple[str, str, Mapping[str, Any]]]) -> Table:
    """Figures of `diagnose_embeddings` for each (model, pairs, figures), one row per model."""
    rows, protocol = [], ""
    for name, pairs, figures in found:
        values = [f"{figures[key]:.4g}" if key in figures else "" for key in EMBEDDINGS]
        rows.append([name, pairs, *values])
        protocol = protocol or figures.get("protocol", "")
    columns = ("model", "pairs", *(key.replace("_", " ") for key in EMBEDDINGS))
    return Table("Embeddings", columns, rows, (protocol,) if protocol else ())


def config_differences(runs: Sequence[Run]) -> Table | None:
    """The config fields that differ between runs, or None if none does."""
    flat = [flatten(run.config) for run in runs]
    names = dict.fromkeys(name for config in flat for name in config)
    rows = [
        [name, *(config.get(name, "") for config in flat)]
        for name in names
        if name.split(".")[-1] not in SAME_PLACE and len({config.get(name) for config in flat}) > 1
    ]
    if not rows:
        return None
    return Table("Where the configs differ", ("field", *(run.name for run in runs)), rows)


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """A config as in JSON, flattened: `{"data.max_len": "64", ...}`."""
    found = {}
    for name, value in config.items():
        if isinstance(value, Mapping):
            found |= flatten(value, f"{prefix}{name}.")
        else:
            several = isinstance(value, list)
            found[prefix + name] = ", ".join(map(str, value)) if several else str(value)
    return found


def _speed(run: Run) -> list[str]:
    rates = [line["sentences_per_second"] for line in run.trained if "sentences_per_second" in line]
    rate = statistics.median(rates) if rates else 0
    if not rate:
        return ["", ""]
    size = run.config.get("data", {}).get("batch_size")
    minutes = run.trained[-1]["step"] * size / rate / 60 if size else None
    time = "" if minutes is None else f"{minutes:.1f} min"
    return [f"{rate:.4g}", f"{minutes / 60:.1f} h" if minutes and minutes >= 120 else time]


def _of_suite(results: Sequence[dict[str, Any]], suite: str) -> list[tuple[str, dict[str, Any]]]:
    """(model, result) of each model with a result; a failed suite has an error instead."""
    return [(one["model"], one[suite]) for one in results if "protocol" in one.get(suite, {})]
