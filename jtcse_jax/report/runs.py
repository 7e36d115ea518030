"""Reads runs for a report: logs, configs and scores from their folders."""

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.development import METRIC
from jtcse_jax.evaluation.sts import PROTOCOL
from jtcse_jax.evaluation.sts_suite import STS
from jtcse_jax.evaluation.suites import SUITES
from jtcse_jax.runtime import environment
from jtcse_jax.runtime.files import read_json
from jtcse_jax.store.ensemble import split_sum
from jtcse_jax.store.workdir import CHECKPOINTS, CONFIG, FINISHED, METRICS
from jtcse_jax.training.metrics import read_jsonl
from jtcse_jax.traits import TRAITS, Traits
from jtcse_jax.user_path import user_path


@dataclass
class Run:
    """One training run, or a model without a log."""

    name: str  #: the shortest end of its path that is unique on the page
    folder: Path
    config: dict[str, Any] = field(default_factory=dict)  #: {} for a model without a log
    trained: list[dict[str, float]] = field(default_factory=list)  #: means of training metrics
    scored: list[dict[str, float]] = field(default_factory=list)  #: scores of the dev set
    environments: dict[int, str] = field(default_factory=dict)  #: versions, by their first step
    scores: dict[str, Any] = field(default_factory=dict)  #: results of suites, from its pipeline
    notes: list[str] = field(default_factory=list)  #: what was left out, and why

    @property
    def objective(self) -> str:
        """The loss; "" for a model without a log."""
        return self.config.get("objective", {}).get("name", "")

    @property
    def embeds(self) -> bool:
        """Whether the run trains sentence vectors, as all but a language model do."""
        return TRAITS.get(self.objective, Traits()).embeds

    @property
    def best(self) -> dict[str, float] | None:
        """The line of the step that is used: the best dev score, the later step on a tie."""
        return max(self.scored, key=lambda line: (line[METRIC], line["step"]), default=None)


def find_runs(folders: Sequence[str | Path]) -> list[Run]:
    """Returns the runs in these folders, and the stages of a pipeline in the order of training.

    A folder without a training log is treated as an exported or published model. Raises UserError
    for a folder that does not exist, a run that has logged nothing, and a damaged line, by file and
    line.
    """
    found = [run for folder in folders for run in _runs_in(user_path(folder))]
    if not found:
        raise UserError("No run was given: name a workdir.")
    paths = [run.folder.resolve() for run in found]
    for run, path in zip(found, paths, strict=True):
        run.name = _short_name(path, [other for other in paths if other != path])
    return found


def read_log(path: Path) -> tuple[list[dict[str, float]], bool]:
    """The lines of a `metrics.jsonl`, and whether the last line was incomplete and left out.

    Raises UserError for any other damaged line, by file and line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error}): restore it.") from error
    numbered = [(number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    lines = []
    for place, (number, line) in enumerate(numbered):
        try:
            lines.append(_checked(json.loads(line)))
        except ValueError as error:
            if place == len(numbered) - 1 and not text.endswith("\n"):
                return lines, True
            raise UserError(
                f"{path}:{number}: not a line of metrics ({error}): delete that line."
            ) from error
    return lines, False


def read_results(path: str | Path) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """The results of models in a file of `evaluate --output`, and the differences between them.

    Raises UserError for anything else.
    """
    path = user_path(path)
    if not path.is_file():
        raise UserError(f"--scores {path}: no such file; `evaluate --output` writes one.")
    content = read_json(path)
    results = content.get("models", [content])
    differences = content.get("differences", {})
    if (
        not isinstance(results, list)
        or not isinstance(differences, dict)
        or not all(map(_is_result, results))
    ):
        raise UserError(f"--scores {path}: not a file of scores from `evaluate --output`.")
    return results, differences


def _runs_in(folder: Path) -> list[Run]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name a workdir, or a model's folder.")
    if (folder / METRICS).is_file():
        return [_read_run(folder)]
    if (folder / CONFIG).is_file() or (folder / CHECKPOINTS).is_dir():
        raise UserError(f"{folder}: it has no {METRICS}: the run has logged nothing yet.")
    stages = {path.parent.name: read_json(path) for path in sorted(folder.glob(f"*/{CONFIG}"))}
    logged = [name for name in _in_order(stages) if (folder / name / METRICS).is_file()]
    if stages and not logged:
        raise UserError(f"{folder}: no stage of this pipeline has logged anything yet.")
    if stages:
        return [_read_run(folder / name) for name in logged]
    if not any(folder.glob("*.json")):
        raise UserError(f"{folder}: not the workdir of a run or a pipeline, and not a model.")
    note = "a model without a training log: there are no training curves and no dev scores of steps"
    return [Run("", folder, notes=[note])]


def _read_run(folder: Path) -> Run:
    lines, cut = read_log(folder / METRICS)
    run = Run("", folder)
    run.trained = [line for line in lines if "loss" in line]
    run.scored = [line for line in lines if METRIC in line]
    if not run.trained and not run.scored:
        raise UserError(f"{folder / METRICS}: it has no loss and no dev score: train longer.")
    if (folder / CONFIG).is_file():
        run.config = read_json(folder / CONFIG)
    else:
        run.notes.append(f"no {CONFIG}: there is no config to show")
    for line in read_jsonl(folder / environment.FILE):
        text = ", ".join(f"{name} {value}" for name, value in line.items() if name != "step")
        run.environments[line["step"]] = text
    if cut:
        run.notes.append(f"the last line of {METRICS} was cut short by a kill and is left out")
    if not run.trained:
        run.notes.append("no training step is logged yet: there are no training curves")
    if not run.scored:
        why = "data.dev was not given" if run.embeds else "a language model"
        run.notes.append(f"no dev scores: {why}")
    if (folder / FINISHED).is_file():
        row = read_json(folder / FINISHED)
        if isinstance(row.get("sts"), dict) and row["sts"]:
            run.scores[STS.name] = {"protocol": PROTOCOL, STS.required: row["sts"]}
    return run


def _in_order(stages: dict[str, dict[str, Any]]) -> list[str]:
    """Names of stages, each after the stages it starts from or learns from, otherwise by name."""
    needed = {name: _stages_named(config) & stages.keys() for name, config in stages.items()}
    ordered: list[str] = []
    while left := [name for name in sorted(stages) if name not in ordered]:
        ready = [name for name in left if needed[name] <= set(ordered) | {name}]
        ordered += ready or left
    return ordered


def _stages_named(config: dict[str, Any]) -> set[str]:
    """Names of the folders beside the run's own folder that its config mentions."""
    pipeline = Path(config.get("workdir", "")).parent
    models = [*config.get("model", {}).get("towers", ())]
    teacher = config.get("objective", {}).get("teacher")
    models += [model for _, model in split_sum(teacher)] if teacher else []
    paths = [Path(str(model).partition("#")[0]) for model in models]
    return {path.name for path in paths if path.parent == pipeline}


def _short_name(path: Path, others: Iterable[Path]) -> str:
    for count in range(1, len(path.parts) + 1):
        end = path.parts[-count:]
        if not any(other.parts[-count:] == end for other in others):
            return "/".join(end).replace("//", "/")
    return str(path)


def _checked(line: Any) -> dict[str, float]:
    if not isinstance(line, dict) or "step" not in line:
        raise ValueError("no step in it")
    for name, value in line.items():
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise ValueError(f"{name} = {value!r} is not a finite number")
    return line


def _is_result(result: Any) -> bool:
    if not isinstance(result, dict) or not isinstance(result.get("model"), str):
        return False
    found = {suite: result[suite] for suite in SUITES if suite in result}
    return bool(found or "error" in result) and all(
        isinstance(scores, dict)
        and ("error" in scores or isinstance(scores.get(SUITES[suite].required), dict))
        for suite, scores in found.items()
    )
