"""`python -m jtcse_jax.evaluate --model PATH --sts FOLDER`: scores one or several models."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rich
import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

from jtcse_jax.config_file import CONFIGS
from jtcse_jax.errors import UserError, one_line_errors
from jtcse_jax.evaluation.suites import Diagnostics, Model, Mteb, Sts, Transfer, load_model
from jtcse_jax.runtime.compilation import keep_compiled
from jtcse_jax.runtime.environment import environment
from jtcse_jax.runtime.files import check_replaceable, replace
from jtcse_jax.store.ensemble import PromptArguments
from jtcse_jax.user_path import user_path

SUITES = {"sts": Sts, "transfer": Transfer, "diagnostics": Diagnostics, "mteb": Mteb}
MODEL_OPTIONS = ("step", "pooling", "max_len", "prompt", "prompt_name")
ZERO_SHOT = CONFIGS / "zero_shot_tasks.yaml"

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Arguments(PromptArguments):
    """Scores a model and prints the protocol with each score.

    A model is anything that `--model` takes, or `sentence-transformers:NAME`. Separate several
    seeds of one method by commas; they may have a name: `jtcse=runs/0,runs/1`. --step, --pooling,
    --max-len and prompts apply to --model only, --compute-dtype to all models of this project.
    """

    suite: Literal["sts", "transfer", "mteb", "diagnostics", "all"] | None = None
    """The suite to score; by default all suites whose data is given."""
    sts: str | None = None
    """Folder of STS12-16, STS-B and SICK-R in SentEval's layout (STS12-en-test, ...), or a file of
    lines `sentence1<TAB>sentence2<TAB>score`."""
    transfer: str | None = None
    """Folder of MR, CR, SUBJ, MPQA, SST2, TREC and MRPC in SentEval's layout (CR, MPQA, ...)."""
    dev: str | None = None
    """Pairs for the diagnostics: an STS-B folder, a file as for --sts, or `builtin`, the default of
    --suite diagnostics."""
    mteb: str | None = None
    """File that lists MTEB's tasks; the default of --suite mteb is configs/zero_shot_tasks.yaml."""
    mteb_tasks: tuple[str, ...] = ()
    """Names of the tasks to run; by default all tasks of the list."""
    mteb_results: str = "mteb_results"
    """Folder for the results of finished MTEB tasks; a later start skips these tasks."""
    compare: tuple[str, ...] = ()
    """Models to compare with `--model`; their differences from it are printed."""
    seed: int = 0
    """Seed of the random folds, sentences, dropout views and bootstrap samples."""
    output: str | None = None
    """File for the JSON result, which is also printed."""


def evaluate(arguments: Arguments) -> dict[str, Any]:
    """Returns the result of one model, or `{"models": ..., "methods": ..., "differences": ...}`.

    A result names the model, its hash, the versions and the seed. Under the name of each suite are
    its scores with their protocol, data, cut sentences and seconds, or the error that stopped it.
    "methods" has the mean and deviation over seeds. "differences" has, by method and STS task, how
    much higher Spearman is than that of `--model`, with a 95 % interval. `--output` is written
    after every suite.

    All data is read before the first model. Raises UserError as the readers of models and data do.
    With several suites or models, an error of one is part of the result, and the rest is scored.
    """
    if not 0 <= arguments.seed < 2**32:
        raise UserError(f"--seed {arguments.seed}: choose from 0 to 2**32 - 1.")
    path = check_replaceable(arguments.output) if arguments.output else None
    chosen = _chosen_suites(arguments)
    names = _names(arguments)
    several = len(names) > 1
    options = {key: getattr(arguments, key) for key in MODEL_OPTIONS}
    conditions = {"seed": arguments.seed, "environment": environment()}
    results: list[dict[str, Any]] = []
    for method, name in names:
        result: dict[str, Any] = {"method": method} if several else {}
        results.append(result)
        try:
            model = load_model(
                name, arguments.compute_dtype, **(options if method == names[0][0] else {})
            )
        except UserError as error:
            if not several:
                raise
            logger.warning("%s", error)
            result |= {"model": name, "error": str(error)}
            continue
        result |= model.description | conditions
        for suite, scorer in chosen.items():
            result[suite] = _score(suite, scorer, model, alone=not several and len(chosen) == 1)
            _write(path, {"models": results} if several else result)
    whole = results[0]
    if several:
        if all("error" in result for result in results):
            raise UserError(results[0]["error"])
        whole = {"models": results, "methods": _methods(results)}
        whole["differences"] = _differences(results, chosen, arguments)
    _write(path, whole)
    return whole


def print_tables(result: dict[str, Any]) -> None:
    """Prints the conditions of the scores, then a table per suite with a row per model or method.

    A method with several seeds has the mean and the standard deviation over its seeds.
    """
    results = result.get("models", [result])
    for one in results:
        for member in one.get("members", ()):
            line = "{model}: {towers} tower(s), {pooling} pooling, serving length {serving_length}"
            dtype = f", {member['compute_dtype']}" if "compute_dtype" in member else ""
            rich.print(Text(line.format(**member) + dtype))  # a path may look like markup
    for suite, scorer in SUITES.items():
        scored = [one for one in results if "protocol" in one.get(suite, {})]
        if not scored:
            continue
        protocol = scored[0][suite]["protocol"]
        _print(suite, _headlines(results, suite), protocol, digits=scorer.digits)
        _print_cut_sentences(suite, scored)
        for one in scored:
            for said in one[suite].get("undefined", ()):
                rich.print(Text(f"{one['model']}: {said}: no correlation is defined; counted as 0"))
    if result.get("differences"):
        rows = {method: [found["average"]] for method, found in result["differences"].items()}
        reference = results[0]["method"]
        _print("sts", rows, f"average minus that of {reference}, with its 95 % bootstrap interval")


def _print_cut_sentences(suite: str, results: list[dict[str, Any]]) -> None:
    counts = {
        one["model"]: one[suite]["cut_sentences"]
        for one in results
        if "cut_sentences" in one[suite]
    }
    if counts:
        each = (f"{count:,} ({model})" for model, count in counts.items() if count)
        rich.print(Text(f"sentences cut at the serving length: {', '.join(each) or 0}"))


def _chosen_suites(arguments: Arguments) -> dict[str, Any]:
    """Reads the data of the requested suites."""
    named = arguments.suite
    data = {
        "sts": arguments.sts,
        "transfer": arguments.transfer,
        "diagnostics": arguments.dev,
        "mteb": arguments.mteb or (str(ZERO_SHOT) if arguments.mteb_tasks else None),
    }
    chosen = [suite for suite in data if data[suite]]
    if named is not None:
        other = [suite for suite in chosen if named not in ("all", suite)]
        if other:
            raise UserError(f"--suite {named}, but data for {other[0]}: leave one of them out.")
        chosen = list(data) if named == "all" else [named]
        data["diagnostics"] = data["diagnostics"] or "builtin"
        data["mteb"] = data["mteb"] or str(ZERO_SHOT)
    if not chosen:
        raise UserError("There is nothing to score: give --sts FOLDER, or choose a --suite.")
    for suite in chosen:
        if not data[suite]:
            raise UserError(f"--suite {named} needs --{suite} FOLDER.")
    make = {
        "sts": Sts,
        "transfer": partial(Transfer, seed=arguments.seed),
        "diagnostics": partial(Diagnostics, seed=arguments.seed),
        "mteb": partial(Mteb, names=arguments.mteb_tasks, folder=arguments.mteb_results),
    }
    return {suite: make[suite](data[suite]) for suite in chosen}


def _names(arguments: Arguments) -> list[tuple[str, str]]:
    """Pairs of method and model, in order; a method has one pair per seed."""
    names: dict[str, list[str]] = {}
    for given in (arguments.model, *arguments.compare):
        is_path = user_path(given).exists()  # a path may contain "=" and ","
        method, mark, models = given.partition("=")
        if is_path or not mark or "/" in method:
            method, models = given, given
        if method in names:
            raise UserError(f"{method} is given twice: compare it with other models.")
        names[method] = [given] if is_path else models.split(",")
        if not all(map(str.strip, names[method])):
            raise UserError(f"{given!r}: a name between commas is empty.")
    return [(method, name) for method, models in names.items() for name in models]


def _score(suite: str, scorer: Any, model: Model, *, alone: bool) -> dict[str, Any]:
    """A suite's result with its seconds; unless `alone`, an error becomes the result.

    For models of this project it includes the number of cut sentences.
    """
    start, cut_before = time.perf_counter(), model.cut_sentences
    try:
        result = scorer.score(model)
    except UserError as error:
        if alone:
            raise
        logger.warning("%s: %s", suite, error)
        return {"error": str(error)}
    cut_after = model.cut_sentences
    if cut_before is not None and cut_after is not None:
        result["cut_sentences"] = cut_after - cut_before
    return result | {"data": scorer.data, "seconds": round(time.perf_counter() - start, 1)}


def _write(path: Path | None, result: dict[str, Any]) -> None:
    """Writes the results so far: a later suite may take hours, or be interrupted."""
    if path is not None:
        replace(path, json.dumps(result, indent=2) + "\n")


def _headlines(results: Sequence[dict[str, Any]], suite: str) -> dict[str, list[dict[str, float]]]:
    """The numbers in a table row, by method and seed; {} for a seed without a result."""
    rows: dict[str, list[dict[str, float]]] = {}
    for one in results:
        found = one.get(suite, {})
        numbers = SUITES[suite].headline(found) if "protocol" in found else {}
        rows.setdefault(one.get("method", one["model"]), []).append(numbers)
    return rows


def _methods(results: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Mean, standard deviation (None for one seed) and seeds, by method, suite and score."""
    summary: dict[str, Any] = {}
    for suite in SUITES:
        for method, seeds in _headlines(results, suite).items():
            for name in dict.fromkeys(name for one in seeds for name in one):
                values = [one[name] for one in seeds if name in one]
                deviation = round(float(np.std(values, ddof=1)), 4) if len(values) > 1 else None
                summary.setdefault(method, {}).setdefault(suite, {})[name] = {
                    "mean": round(float(np.mean(values)), 4),
                    "sd": deviation,
                    "seeds": len(values),
                }
    return summary


def _differences(
    results: Sequence[dict[str, Any]], chosen: dict[str, Any], arguments: Arguments
) -> dict[str, Any]:
    scored = [one["method"] for one in results if "protocol" in one.get("sts", {})]
    if results[0]["method"] not in scored:
        return {}
    return chosen["sts"].differences(scored, arguments.seed)


def _print(
    title: str, rows: Mapping[str, Sequence[dict[str, float]]], caption: str, digits: int = 2
) -> None:
    table = Table(
        Column(title, overflow="fold", min_width=len(title)), box=SIMPLE_HEAD, pad_edge=False
    )
    table.caption = Text(caption)
    columns = list(dict.fromkeys(name for seeds in rows.values() for one in seeds for name in one))
    for name in columns:
        table.add_column(name.replace("_", "\n"), justify="right", no_wrap=True)
    for method, seeds in rows.items():
        cells = (_cell([one.get(name) for one in seeds], digits) for name in columns)
        table.add_row(Text(method), *cells)
    rich.print(table)


def _cell(values: list[float | None], digits: int) -> str:
    present = [value for value in values if value is not None]
    if not present:
        return ""
    mean = f"{np.mean(present):.{digits}f}"
    if len(present) < len(values):
        return f"{mean}\n{len(present)} of {len(values)} seeds"
    return f"{mean}\n± {np.std(present, ddof=1):.{digits}f}" if len(present) > 1 else mean


@one_line_errors
def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    keep_compiled()
    arguments = tyro.cli(Arguments, prog="python -m jtcse_jax.evaluate")
    result = evaluate(arguments)
    print_tables(result)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
