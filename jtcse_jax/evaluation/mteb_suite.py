"""The suite `mteb`: zero-shot tasks, scored by MTEB."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from jtcse_jax.config_file import CONFIGS
from jtcse_jax.evaluation.foreign import ForeignEncoder
from jtcse_jax.evaluation.score_table import Table, number
from jtcse_jax.evaluation.scored_model import Model
from jtcse_jax.evaluation.suite import Options, Scored, Suite, fingerprint
from jtcse_jax.evaluation.zero_shot import evaluate_mteb
from jtcse_jax.evaluation.zero_shot_tasks import choose, load_tasks
from jtcse_jax.user_path import user_path

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class MtebOptions(Options):
    """Options of the suite."""

    mteb: str | None = None
    """File that lists MTEB's tasks; the default of --suite mteb is configs/zero_shot_tasks.yaml."""
    mteb_tasks: tuple[str, ...] = ()
    """Names of the tasks to run; by default all tasks of the list."""
    mteb_results: str = "mteb_results"
    """Folder for the results of finished MTEB tasks; a later start skips these tasks."""


class Mteb:
    """Zero-shot tasks, scored by MTEB."""

    def __init__(self, tasks_file: str, names: Sequence[str], folder: str):
        """Reads the list; `folder` gets a folder per model, which keeps its finished tasks.

        Raises UserError if the list is wrong.
        """
        self.tasks_file = user_path(tasks_file)
        tasks = choose(load_tasks(self.tasks_file), names)
        self.data = fingerprint(self.tasks_file.name, [map(str, tasks)])
        self.names, self.folder = names, user_path(folder)

    def score(self, model: Model) -> dict[str, Any]:
        """As `evaluate_mteb`."""
        fingerprint = model.description["fingerprint"]
        return evaluate_mteb(
            model.encoder.model if isinstance(model.encoder, ForeignEncoder) else model.encoder,
            self.tasks_file,
            self.folder / fingerprint[:16],
            fingerprint=fingerprint,
            names=self.names,
            report=logger.warning,
        )


def _headline(result: dict[str, Any]) -> dict[str, float]:
    """Averages by category, each with its number of tasks, and scores outside the list."""
    found = {}
    for group in ("paper", "ours"):
        for name, category in result.get(group, {}).items():
            if category["scored"]:
                whose = "" if group == "paper" else "_(ours)"
                tasks = f"_{category['scored']} of {category['of']}"
                found[name + whose + tasks] = category["average"]
    return found | result["other"]


def _tables(mteb: Sequence[Scored]) -> list[Table]:
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
    rows = [[name, *(number(one.get(name)) for one in scores)] for name in names]
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


MTEB = Suite(
    name="mteb",
    options=MtebOptions,
    data="mteb",
    default=str(CONFIGS / "zero_shot_tasks.yaml"),
    requested=lambda options: bool(options.mteb_tasks),
    make=lambda path, options: Mteb(path, options.mteb_tasks, options.mteb_results),
    headline=_headline,
    required="failed",
    tables=_tables,
)
