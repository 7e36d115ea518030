"""Zero-shot tasks by MTEB: a list of tasks by category, run one by one and resumable.

MTEB loads each task's data from the hub, encodes it, and scores it. Nothing is trained, except a
logistic regression on the frozen vectors for a classification task. Each finished task is one file
in MTEB's own format.
"""

import contextlib
import json
import logging
import os
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.zero_shot_tasks import Task, choose, load_tasks
from jtcse_jax.runtime.files import read_json

MODEL = "model.json"  # identifies the model whose results a folder holds
MOST_SUBSETS = 60  # with more subsets only their mean is listed
PATIENCE = 2  # tasks in a row that may fail to reach the hub before the run stops; 1 at the start
# Raised by Python, datasets and requests; by the operating system; by httpx.
LOST = {"ConnectionError", "gaierror", "TransportError"}
PROTOCOL = (
    "MTEB's own tasks, splits, revisions and seeds; a task's score is the mean of its metric over "
    "splits and subsets, times 100, and an average is the plain mean over the category's scored "
    "tasks, to be compared only where all were scored ('scored' equals 'of'); the tasks under "
    "'ours' are our own choice, never to be compared with the paper's"
)

logger = logging.getLogger(__name__)


def evaluate_mteb(
    encoder: Any,
    tasks_file: str | Path,
    output_folder: str | Path,
    *,
    fingerprint: str,
    names: Sequence[str] = (),
    encode_kwargs: Mapping[str, Any] = MappingProxyType({}),
    report: Callable[[str], None] = logger.info,
) -> dict[str, Any]:
    """Runs the tasks that have no result yet, and returns scores by category, ready for JSON.

    A task that fails is listed under "failed" with its reason, and the rest are run. If two tasks
    in a row, or the first, cannot reach the hub, the run stops; a later call resumes it.

    Args:
      encoder: any encoder for `mteb.evaluate`: a `SentenceEncoder`, or a `SentenceTransformer`.
      tasks_file: a file like `configs/zero_shot_tasks.yaml`.
      output_folder: created if absent; one file per finished task.
      fingerprint: hash of the model; a folder belongs to one model.
      names: MTEB task names, by default all of the file; tasks outside the file are "other".
      encode_kwargs: options of the encoder's `encode`; other options need another folder.
      report: called with one line per task.
    Returns:
      "protocol"; "paper" and "ours", by category the "average" (None without a score), how many
      tasks were "scored" "of" how many, "metric" and "scores"; "other"; "subsets", the scores of
      tasks that have 2 to 60; "failed"; "mteb", the versions that scored.
    Raises:
      UserError: mteb is not installed, a wrong tasks file, an unknown name, a folder of another
        model, a damaged result, or no score at all because the hub cannot be reached.
    """
    try:
        import mteb
    except ImportError as error:
        raise UserError("The suite mteb needs the package mteb: pip install mteb") from error
    listed = load_tasks(tasks_file)
    chosen = choose(listed, names)
    folder = _own_folder(Path(output_folder), fingerprint)
    done = {task: _finished(mteb, folder, _find(mteb, task, tasks_file)) for task in chosen}
    results, failed, unreachable = {}, {}, 0
    for task in sorted(chosen, key=lambda task: done[task] is None):
        start = time.perf_counter()
        try:
            # A new object each time: creating one of some MTEB tasks seeds its generator.
            result = done[task]
            if result is None:
                theirs = _find(mteb, task, tasks_file)
                result = _run(mteb, encoder, theirs, folder, dict(encode_kwargs))
            score = _scores(task, result)["score"]
        except Exception as error:  # raised by any of the many libraries behind a task
            failed[task.name] = _reason(error)
            unreachable = unreachable + 1 if _is_unreachable(error) else 0
            if unreachable == (PATIENCE if results else 1):
                _stop(chosen, results, failed)
                break
            report(f"{task.name}: failed: {failed[task.name]}")
        else:
            results[task], unreachable = result, 0
            report(f"{task.name}: {score:.2f} ({time.perf_counter() - start:.0f} s)")
    return {"protocol": PROTOCOL} | _summary(listed, results) | {"failed": failed}


def _find(mteb: Any, task: Task, tasks_file: str | Path) -> Any:
    with _quiet():
        try:
            return mteb.get_task(task.name, hf_subsets=task.subsets)
        except (KeyError, ValueError) as error:
            reason = str(error.args[0]).removeprefix("KeyError: ").rstrip(".")
            raise UserError(
                f"{tasks_file}: MTEB {mteb.__version__} has no task {task.name}"
                f"{' of these subsets' if task.subsets else ''} ({reason}): correct the name."
            ) from error


def _own_folder(folder: Path, fingerprint: str) -> Path:
    path = folder / MODEL
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            path.write_text(json.dumps({"fingerprint": fingerprint}) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"{folder}: {error.strerror}: give another folder for MTEB.") from error
    known = read_json(path, advice="give a new folder").get("fingerprint", "unknown")
    if known != fingerprint:
        raise UserError(
            f"{folder} has the results of another model (hash {known[:12]}, this one's "
            f"{fingerprint[:12]}): give each model a folder of its own."
        )
    return folder


def _finished(mteb: Any, folder: Path, theirs: Any) -> Any | None:
    """MTEB's result if it is complete and the data's revision is the current one, else None."""
    path = folder / f"{theirs.metadata.name}.json"
    if not path.exists():
        return None
    try:
        result = mteb.results.TaskResult.from_disk(path)
    except Exception as error:  # a parser error or a validation error
        raise UserError(
            f"{path} is not a result of MTEB: delete it to run the task again."
        ) from error
    stale = result.dataset_revision != theirs.metadata.dataset["revision"]
    return None if stale or result.get_missing_evaluations(theirs) else result


def _run(mteb: Any, encoder: Any, theirs: Any, folder: Path, encode_kwargs: dict[str, Any]) -> Any:
    with _quiet():
        outcome = mteb.evaluate(
            encoder,
            theirs,
            encode_kwargs=encode_kwargs,
            cache=None,
            co2_tracker=False,
            show_progress_bar=False,
        )
    if not outcome.task_results:
        raise RuntimeError(outcome.exceptions[0].exception)
    [result] = outcome.task_results
    path = folder / f"{theirs.metadata.name}.json"
    unfinished = path.with_suffix(f".{os.getpid()}.part")
    result.to_disk(unfinished)
    os.replace(unfinished, path)
    return result


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences warnings about newer versions of a task and about retries to the hub."""
    logs = [logging.getLogger(name) for name in ("mteb", "huggingface_hub")]
    levels = [log.level for log in logs]
    for log in logs:
        log.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for log, level in zip(logs, levels, strict=True):
            log.setLevel(level)


def _scores(task: Task, result: Any) -> dict[str, Any]:
    """The task's score, times 100, and those of its subsets. Raises ValueError if there is none."""
    metric = task.metric or "main_score"
    by_subset: dict[str, list[float]] = {}
    for entries in result.scores.values():
        for entry in entries:
            if task.subsets and entry["hf_subset"] not in task.subsets:
                continue  # from an earlier run with more subsets
            if metric not in entry:
                raise ValueError(f"MTEB gives no score {metric!r} for it")
            by_subset.setdefault(entry["hf_subset"], []).append(entry[metric])
    every = [value for values in by_subset.values() for value in values]
    if not np.isfinite(every).all():
        raise ValueError(f"its {metric} is undefined for {len(every)} splits or subsets together")
    subsets = {name: round(100 * np.mean(values), 2) for name, values in sorted(by_subset.items())}
    return {"score": round(100 * float(np.mean(every)), 2), "subsets": subsets}


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}".rstrip(": ")


def _is_unreachable(error: BaseException | None) -> bool:
    """Whether a failed connection is among the causes, from any library.

    Checked by class name: the hub's client has changed its library, and none need be installed.
    """
    while error is not None:
        if LOST & {kind.__name__ for kind in type(error).__mro__}:
            return True
        error = error.__cause__ or error.__context__
    return False


def _stop(chosen: list[Task], results: dict[Task, Any], failed: dict[str, str]) -> None:
    """Lists the tasks that were not tried as failed. Raises UserError if none was scored."""
    if not results:
        raise UserError(
            "MTEB's data comes from the Hugging Face hub, which cannot be reached "
            f"({list(failed.values())[-1]}): connect and run it again."
        )
    for task in chosen:
        if task not in results:
            failed.setdefault(task.name, "not tried: the Hugging Face hub cannot be reached")


def _summary(listed: list[Task], results: dict[Task, Any]) -> dict[str, Any]:
    scored = {task: _scores(task, result) for task, result in results.items()}
    summary: dict[str, Any] = {}
    for task in listed:
        group = summary.setdefault(task.group, {})
        group.setdefault(task.category, []).append(task)
    for group in summary.values():
        for category, tasks in group.items():
            group[category] = _category(tasks, scored)
    summary["other"] = {
        task.name: found["score"] for task, found in scored.items() if task not in listed
    }
    summary["subsets"] = {
        task.name: found["subsets"]
        for task, found in scored.items()
        if 2 <= len(found["subsets"]) <= MOST_SUBSETS
    }
    summary["mteb"] = sorted({str(result.mteb_version) for result in results.values()})
    return summary


def _category(tasks: list[Task], scored: dict[Task, dict[str, Any]]) -> dict[str, Any]:
    scores = {task.name: scored[task]["score"] for task in tasks if task in scored}
    return {
        "average": round(float(np.mean(list(scores.values()))), 2) if scores else None,
        "scored": len(scores),
        "of": len(tasks),
        "metric": tasks[0].category_metric,
        "scores": scores,
    }
