"""The tables of a report: runs, the scores of each suite, and the configs' differences."""

import contextlib
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.development import METRIC, Development
from jtcse_jax.evaluation.sts import PROTOCOL
from jtcse_jax.report.runs import SUITES, Run
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


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each row is its name."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()  #: how the numbers are made, and warnings about them
    best: frozenset[tuple[int, int]] = frozenset()  #: (row, column) of the highest in a column
    folded: bool = False  #: collapsed until opened


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
    piped = [(run.name, run.sts) for run in runs if run.sts]
    sts = _of_suite(results, "sts")
    rows = piped + [(name, found["spearman"]) for name, found in sts]
    if rows:
        protocols = ([PROTOCOL] if piped else []) + [found["protocol"] for _, found in sts]
        undefined = [
            f"{name}: {task}: no correlation is defined; counted as 0."
            for name, found in sts
            for task in found.get("undefined", ())
        ]
        tables.append(_scores("STS", rows, protocols, _missing(sts) + undefined))
    tables += [_differences(reference, found) for reference, found in differences.items()]
    if any(found.get("subsets") for _, found in sts):
        tables.append(_subsets(sts))
    transfer = _of_suite(results, "transfer")
    if transfer:
        rows = [(name, _with_f1(found)) for name, found in transfer]
        protocols = [found["protocol"] for _, found in transfer]
        tables.append(_scores("Transfer", rows, protocols, _missing(transfer)))
    mteb = _of_suite(results, "mteb")
    if mteb:
        tables += _mteb(mteb)
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


def _scores(
    title: str,
    rows: Sequence[tuple[str, Mapping[str, float]]],
    protocols: Iterable[str],
    missing: Sequence[str],
) -> Table:
    tasks = dict.fromkeys(task for _, scores in rows for task in scores if task != "average")
    columns = [*tasks, "average"]
    notes = [*(protocol + "." for protocol in dict.fromkeys(protocols)), *missing]
    comparable = set(columns)
    for name, scores in rows:
        lacking = [task for task in tasks if task not in scores]
        if lacking:
            comparable.discard("average")
            notes.append(f"{name}: without {', '.join(lacking)}, so its average is of fewer tasks.")
    cells = [[name, *(_number(scores.get(task)) for task in columns)] for name, scores in rows]
    best = {
        (row, place)
        for place, task in enumerate(columns, 1)
        for row in range(len(rows))
        if task in comparable and len(rows) > 1 and _is_highest(cells, row, place)
    }
    return Table(title, ("model", *columns), cells, tuple(notes), frozenset(best))


def _missing(results: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """The missing tasks without repetition: models scored together miss the same tasks."""
    missing = [result.get("missing", {}) for _, result in results]
    messages = (f"{task} is missing: {reason}." for one in missing for task, reason in one.items())
    return list(dict.fromkeys(messages))


def _is_highest(cells: list[list[str]], row: int, place: int) -> bool:
    values = [float(line[place]) for line in cells if line[place]]
    return bool(cells[row][place]) and float(cells[row][place]) == max(values)


def _differences(reference: str, differences: Mapping[str, Any]) -> Table:
    tasks = list(dict.fromkeys(task for found in differences.values() for task in found))
    rows = [
        [method, *(_interval(found[task]) if task in found else "" for task in tasks)]
        for method, found in differences.items()
    ]
    note = f"Spearman times 100 minus that of {reference}, with its 95 % bootstrap interval."
    return Table("STS differences", ("model", *tasks), rows, (note,))


def _interval(found: Mapping[str, float]) -> str:
    return f"{found['mean']:+.2f} [{found['low']:+.2f}, {found['high']:+.2f}]"


def _subsets(sts: Sequence[tuple[str, dict[str, Any]]]) -> Table:
    found = [
        {
            f"{task} {name}": score
            for task, part in result.get("subsets", {}).items()
            for name, score in part["spearman"].items()
        }
        for _, result in sts
    ]
    names = dict.fromkeys(name for scores in found for name in scores)
    rows = [[name, *(_number(scores.get(name)) for scores in found)] for name in names]
    columns = ("subset", *(name for name, _ in sts))
    return Table("STS by subset", columns, rows, ("Spearman times 100.",), folded=True)


def _with_f1(found: dict[str, Any]) -> dict[str, float]:
    scores = dict(found["accuracy"])
    average = scores.pop("average", None)
    scores |= {f"{task} F1": score for task, score in found.get("f1", {}).items()}
    return scores if average is None else scores | {"average": average}


def _mteb(mteb: Sequence[tuple[str, dict[str, Any]]]) -> list[Table]:
    groups = [
        (group, title)
        for group, title in (("paper", "MTEB, the paper's tasks"), ("ours", "MTEB, our own choice"))
    ]
    tables = []
    for group, title in groups:
        found = [result.get(group, {}) for _, result in mteb]
        categories = dict.fromkeys(category for result in found for category in result)
        if not categories:
            continue
        rows = [
            [name, *(_category(result.get(category)) for category in categories)]
            for (name, _), result in zip(mteb, found, strict=True)
        ]
        notes = tuple(dict.fromkeys(result["protocol"] + "." for _, result in mteb))
        tables.append(Table(title, ("model", *categories), rows, notes))
    scores = [_task_scores(result) for _, result in mteb]
    names = dict.fromkeys(name for one in scores for name in one)
    rows = [[name, *(_number(one.get(name)) for one in scores)] for name in names]
    failed = [
        f"{name}: {task} failed: {why}"
        for name, result in mteb
        for task, why in result.get("failed", {}).items()
    ]
    columns = ("task", *(name for name, _ in mteb))
    return [*tables, Table("MTEB by task", columns, rows, tuple(failed), folded=True)]


def _category(found: Mapping[str, Any] | None) -> str:
    if not found or found["average"] is None:
        return ""
    return f"{found['average']:.2f} ({found['scored']} of {found['of']})"


def _task_scores(result: Mapping[str, Any]) -> dict[str, float]:
    parts = [
        part["scores"] for group in ("paper", "ours") for part in result.get(group, {}).values()
    ]
    return {
        task: score for part in [*parts, result.get("other", {})] for task, score in part.items()
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
