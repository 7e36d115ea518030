"""`python -m jtcse_jax.evaluate --model PATH --sts FOLDER`: scores one or several models."""

import json
import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import rich
from rich.text import Text

from jtcse_jax.data.unknown import percentage
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.printed_table import print_table
from jtcse_jax.evaluation.scored_model import Model, load_model
from jtcse_jax.evaluation.suite import Scorer
from jtcse_jax.evaluation.suites import SUITES
from jtcse_jax.runtime.command import command
from jtcse_jax.runtime.environment import environment
from jtcse_jax.runtime.files import check_replaceable, replace
from jtcse_jax.store.ensemble import PromptArguments
from jtcse_jax.user_path import user_path

MODEL_OPTIONS = ("step", "pooling", "max_len", "prompt", "prompt_name")
logger = logging.getLogger(__name__)


# Later bases come first in the help.
_OPTIONS = tuple(suite.options for suite in reversed(SUITES.values()))


@dataclass(frozen=True, kw_only=True)
class Arguments(*_OPTIONS, PromptArguments):
    """Scores a model and prints the protocol with each score.

    A model is anything that `--model` takes, or `sentence-transformers:NAME`. Separate several
    seeds of one method by commas; they may have a name: `jtcse=runs/0,runs/1`. --step, --pooling,
    --max-len and prompts apply to --model only, --compute-dtype to all models of this project,
    --truncate-dim to all.
    """

    suite: str | None = None
    """The suite to score (sts, transfer, diagnostics or mteb), or `all`; by default all suites
    whose data is given."""
    compare: tuple[str, ...] = ()
    """Models to compare with `--model`; their differences from it are printed."""
    truncate_dim: int | None = None
    """Score only this many components of each vector, the first ones, as of a model trained with
    objective.matryoshka."""
    output: str | None = None
    """File for the JSON result; without it, it is printed after the tables."""


def evaluate(arguments: Arguments) -> dict[str, Any]:
    """Returns the result of one model, or `{"models": ..., "methods": ..., "differences": ...}`.

    A result names the model, its hash, the versions and the seed. Under the name of each suite are
    its scores with their protocol, data, cut sentences and seconds, or the error that stopped it;
    STS has the 95 % interval of each task too, over samples of the pairs.
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
            asked = options if method == names[0][0] else {}
            model = load_model(name, arguments.compute_dtype, arguments.truncate_dim, **asked)
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
        whole["differences"] = _differences(results, chosen, arguments.seed)
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
            width = f", vectors of {one['dimensions']}" if "dimensions" in one else ""
            rich.print(Text(line.format(**member) + dtype + width))  # a path may look like markup
    for suite in SUITES.values():
        scored = [one for one in results if "protocol" in one.get(suite.name, {})]
        if not scored:
            continue
        protocol, rows = scored[0][suite.name]["protocol"], _headlines(results, suite.name)
        if len(results) == 1 and "interval" in scored[0][suite.name]:
            interval = scored[0][suite.name]["interval"].items()
            for number, row in enumerate(("95 % from", "95 % to")):
                rows[row] = [{name: bounds[number] for name, bounds in interval}]
            protocol += ", with its 95 % bootstrap interval over the pairs"
        print_table(suite.name, rows, protocol, digits=suite.digits)
        _print_losses(suite.name, scored)
        for one in scored:
            for what in one[suite.name].get("undefined", ()):
                rich.print(Text(f"{one['model']}: {what}: no correlation is defined; counted as 0"))
        if suite.differences and result.get("differences"):
            rows = {method: [found["average"]] for method, found in result["differences"].items()}
            reference = f"average minus that of {results[0]['method']}"
            print_table(suite.name, rows, f"{reference}, with its 95 % bootstrap interval")


def _print_losses(suite: str, results: list[dict[str, Any]]) -> None:
    counted = {one["model"]: one[suite] for one in results if "cut_sentences" in one[suite]}
    kinds = {
        "cut_sentences": ("sentences cut at the serving length", lambda one: one["cut_sentences"]),
        "unknown_characters": (
            "characters that are [UNK] to the tokenizer",
            lambda one: percentage(one["unknown_characters"], one["characters"]),
        ),
    }
    for name, (title, shown) in kinds.items() if counted else ():
        each = (f"{shown(one)} ({model})" for model, one in counted.items() if one[name])
        rich.print(Text(f"{title}: {', '.join(each) or 0}"))


def _chosen_suites(arguments: Arguments) -> dict[str, Scorer]:
    """The requested suites, with their data."""
    named = arguments.suite
    if named not in (None, "all", *SUITES):
        raise UserError(f"--suite {named}: choose one of {', '.join(SUITES)}, all.")
    data = {suite.name: suite.find_data(arguments) for suite in SUITES.values()}
    given = [suite for suite, path in data.items() if path]
    chosen = given if named is None else list(SUITES) if named == "all" else [named]
    other = [suite for suite in given if suite not in chosen]
    if other:
        raise UserError(f"--suite {named}, but data for {other[0]}: leave one of them out.")
    if not chosen:
        raise UserError("There is nothing to score: give --sts FOLDER, or choose a --suite.")
    paths = {}
    for suite in chosen:
        path = SUITES[suite].find_data(arguments, named=named is not None)
        if path is None:
            raise UserError(f"--suite {named} needs --{SUITES[suite].data} FOLDER.")
        paths[suite] = path
    return {suite: SUITES[suite].make(path, arguments) for suite, path in paths.items()}


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


def _score(suite: str, scorer: Scorer, model: Model, *, alone: bool) -> dict[str, Any]:
    """A suite's result with its seconds; unless `alone`, an error becomes the result.

    For models of this project it includes the numbers of cut sentences and unknown characters.
    """
    start, before = time.perf_counter(), model.losses
    try:
        result = scorer.score(model)
    except UserError as error:
        if alone:
            raise
        logger.warning("%s: %s", suite, error)
        return {"error": str(error)}
    result |= {name: count - before[name] for name, count in model.losses.items()}
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
    results: Sequence[dict[str, Any]], chosen: Mapping[str, Scorer], seed: int
) -> dict[str, Any]:
    for suite, scorer in chosen.items():
        compared = SUITES[suite].differences
        scored = [one["method"] for one in results if "protocol" in one.get(suite, {})]
        if compared and results[0]["method"] in scored:
            return compared.measure(scorer, scored, seed)
    return {}


def evaluate_and_print(arguments: Arguments) -> None:
    """Prints tables of the scores and, unless it is in a file, the whole result as JSON.

    Raises UserError as `evaluate`, and at the end for what could not be scored.
    """
    result = evaluate(arguments)
    print_tables(result)
    if not arguments.output:
        print(json.dumps(result, indent=2))
    failed = [
        found["error"]
        for one in result.get("models", [result])
        for found in (one, *one.values())
        if isinstance(found, dict) and "error" in found
    ]
    if failed:
        raise UserError(f"not everything was scored: {failed[0]}")


main = command("evaluate", Arguments, evaluate_and_print)


if __name__ == "__main__":
    main()
