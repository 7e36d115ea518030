"""The list of zero-shot tasks: a YAML file of groups, categories and MTEB task names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from jtcse_jax.errors import UserError

GROUPS = ("paper", "ours")
OPTIONS = {"name": str, "metric": str, "subsets": list}


class Task(NamedTuple):
    """One task of the list."""

    name: str  #: MTEB's name
    group: str = "other"  #: "paper" or "ours"; "other" for a task that is not in the file
    category: str = ""
    metric: str | None = None  #: one of MTEB's metrics; None for its main score
    category_metric: str = ""
    subsets: tuple[str, ...] | None = None  #: None for all


def load_tasks(path: str | Path) -> list[Task]:
    """The tasks of a file, in order. Raises UserError that locates an error in the file."""
    import yaml

    try:
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        lines = str(error).splitlines()
        raise UserError(f"{path}: not a readable list of tasks ({lines[0]}): fix it.") from error
    tasks = []
    for group, categories in _mapping(path, "the file", content, GROUPS).items():
        for category, entry in _mapping(path, group, categories).items():
            where = f"{group}.{category}"
            entry = _mapping(path, where, entry, ("metric", "tasks"))
            if not isinstance(entry.get("metric"), str) or not isinstance(entry.get("tasks"), list):
                raise UserError(f"{path}: {where} needs a metric and a list of tasks.")
            for number, task in enumerate(entry["tasks"]):
                task = _entry(f"{path}: {where}, task {number}", task)
                metric = task.pop("metric", entry["metric"])
                tasks.append(
                    Task(
                        group=group,
                        category=category,
                        metric=metric,
                        category_metric=entry["metric"],
                        **task,
                    )
                )
    names = [task.name for task in tasks]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{path}: {min(twice)} is listed twice: remove one.")
    return tasks


def choose(tasks: list[Task], names: Sequence[str]) -> list[Task]:
    """The tasks with these names, in that order; all tasks if there are no names.

    A name that is not among the tasks becomes a task scored by MTEB's main score.
    """
    by_name = {task.name: task for task in tasks}
    return [by_name.get(name, Task(name)) for name in dict.fromkeys(names)] or tasks


def _mapping(
    path: str | Path, where: str, found: Any, keys: Sequence[str] | None = None
) -> dict[str, Any]:
    if not isinstance(found, dict) or not found:
        raise UserError(f"{path}: {where} is not a mapping: see configs/zero_shot_tasks.yaml.")
    if keys is not None and (unknown := [str(key) for key in found if key not in keys]):
        raise UserError(f"{path}: {where}: unknown key {unknown[0]!r}: use {', '.join(keys)}.")
    return found


def _entry(where: str, found: Any) -> dict[str, Any]:
    if isinstance(found, str):
        return {"name": found}
    if not isinstance(found, dict) or "name" not in found:
        raise UserError(f"{where}: {found!r} is not a name and has none.")
    for key, value in found.items():
        if key not in OPTIONS or not isinstance(value, OPTIONS[key]):
            raise UserError(f"{where}: unknown {key}: {value!r}: use {', '.join(OPTIONS)}.")
    subsets = found.get("subsets")
    if subsets is not None and not (subsets and all(isinstance(name, str) for name in subsets)):
        raise UserError(
            f'{where}: subsets: {subsets!r} are not names: quote them ("no" is a word).'
        )
    return found | {"subsets": tuple(subsets) if subsets else None}
