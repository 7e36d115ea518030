"""The tables of a report: runs, the scores of each suite, and the configs' differences."""

import contextlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.development import METRIC, Development
from jtcse_jax.evaluation.score_table import Table
from jtcse_jax.evaluation.suites import SUITES
from jtcse_jax.report.runs import Run
from jtcse_jax.training.run_record import flatten

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
    """The score, start and length of each run, one row per run; the score first, for phones."""
    columns = ("run", "dev Spearman", "95 % interval", "objective", "start", "steps", "best step")
    rows = []
    for run in runs:
        best = run.best
        towers = run.config.get("model", {}).get("towers", ())
        names = ", ".join(dict.fromkeys(last_part(str(name)) for name in towers))
        start = f"{len(towers)} x {names}" if towers else ""
        score, interval, step = "", "", ""
        if best:
            step, score = str(best["step"]), f"{100 * best[METRIC]:.2f}"
            if "dev_low" in best and "dev_high" in best:
                interval = f"{100 * best['dev_low']:.2f} to {100 * best['dev_high']:.2f}"
        steps = str(run.trained[-1]["step"]) if run.trained else ""
        fields = [run.name, score, interval, run.objective, start, steps, step]
        rows.append([*fields, *_speed(run)])
    note = (
        "Dev Spearman times 100 at the best step, with its bootstrap interval. "
        "Training time is the time of all steps at the last logged speed, without compilation, "
        "evaluation and saving."
    )
    return Table("Runs", (*columns, "sentences/s", "training"), rows, (note,))


def verdict(runs: Sequence[Run]) -> str:
    """One sentence: which run has the best dev score, and by how much; "" without a score.

    The gain is over the next best run of the same dev set or, if there is none, over the start of
    the run. It has a paired interval if the cosines and the pairs are still there.
    """
    bests = [(run, best) for run in runs if (best := run.best)]
    if not bests:
        return ""
    bests.sort(key=lambda each: -each[1][METRIC])
    (first, best), *others = bests
    name = first.config.get("data", {}).get("dev")
    others = [each for each in others if each[0].config.get("data", {}).get("dev") == name]
    score = f"{first.name} has the best dev score, {100 * best[METRIC]:.2f}"
    if others:
        other, old = others[0]
        against = other.name
    elif best["step"] == 0:
        return f"{score}, which is that of its start: no later step is better."
    else:
        other, against = first, "its start"
        old = next((line for line in first.scored if line["step"] == 0), None)
        if old is None:
            return f"{score}."
    difference = None
    with contextlib.suppress(UserError):
        steps = (first.folder, int(best["step"])), (other.folder, int(old["step"]))
        difference = Development(name or "builtin").difference(*steps)
    gain = difference or f"{100 * (best[METRIC] - old[METRIC]):+.2f}"
    return f"{score}; compared with {against}: {gain}."


def last_part(path: str) -> str:
    """The last part of a path; the config has the whole path."""
    return path.rstrip("/").rpartition("/")[2]


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
    columns = ("model", "sentences of", *(key.replace("_", " ") for key in EMBEDDINGS))
    return Table("Embeddings", columns, rows, (protocol,) if protocol else ())


def config_differences(runs: Sequence[Run]) -> Table | None:
    """The config fields that differ between runs, or None if none does."""
    flat = [config_texts(run.config) for run in runs]
    names = dict.fromkeys(name for config in flat for name in config)
    rows = [
        [name, *(config.get(name, "") for config in flat)]
        for name in names
        if name.split(".")[-1] not in SAME_PLACE and len({config.get(name) for config in flat}) > 1
    ]
    if not rows:
        return None
    return Table("Where the configs differ", ("field", *(run.name for run in runs)), rows)


def config_texts(config: Mapping[str, Any]) -> dict[str, str]:
    """The fields of a config as in JSON, as texts: `{"data.max_len": "64", ...}`."""
    return {
        name: ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in flatten(config).items()
    }


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
