"""`python -m jtcse_jax.evaluate --model PATH --sts FOLDER`: scores of one model, or of several."""

import json
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import jax
import numpy as np
import rich
import tyro
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

import jtcse_jax
from jtcse_jax import suites
from jtcse_jax.ensemble import ModelArguments
from jtcse_jax.errors import UserError, one_line_errors

LIBRARIES = ("jax", "flax", "transformers", "tokenizers", "numpy", "scipy")
HEADLINES = {"sts": "spearman"}  # the part of each suite's result that its table shows


@dataclass(frozen=True, kw_only=True)
class Arguments(ModelArguments):
    """Scores a model, with the protocol beside each score.

    A model is whatever `--model` takes, or `sentence-transformers:NAME`. Several seeds of one
    method are given with commas, `runs/0,runs/1`.
    """

    suite: Literal["sts", "all"] | None = None
    """What is scored; by default all that data is given for."""
    sts: str | None = None
    """Folder of STS12-16, STS-B and SICK-R in SentEval's layout (STS12-en-test, ...), or a file of
    your own, `sentence1<TAB>sentence2<TAB>score`."""
    compare: tuple[str, ...] = ()
    """Models to put beside `--model`, with their differences from it."""
    seed: int = 0
    """Of what is drawn: the bootstrap's samples."""
    output: str | None = None
    """File that the JSON is written to as well."""


def evaluate(arguments: Arguments) -> dict[str, Any]:
    """The result of one model, or `{"models": [...], "differences": {...}}` of several.

    A result names the model, its hash, the versions and the seed; each suite's scores stand under
    its name with their protocol and seconds. "differences" holds, by method and STS task, how much
    higher its Spearman is than that of `--model`, with a 95 % interval. Raises UserError as the
    readers of models and data do; all data is read before the first model.
    """
    if arguments.output and not Path(arguments.output).parent.is_dir():
        raise UserError(f"--output {arguments.output}: there is no such folder; make it first.")
    chosen = _chosen_suites(arguments)
    options = {key: getattr(arguments, key) for key in ("step", "pooling", "max_len")}
    results = []
    for method in dict.fromkeys((arguments.model, *arguments.compare)):
        for name in method.split(","):
            model = suites.load_model(name, **options)
            result = {"method": method} | model.description | _conditions(arguments.seed)
            for suite, scorer in chosen.items():
                start = time.perf_counter()
                result[suite] = scorer.score(model)
                result[suite]["seconds"] = round(time.perf_counter() - start, 1)
            results.append(result)
    if len(results) == 1:
        return {key: value for key, value in results[0].items() if key != "method"}
    differences = {}
    if "sts" in chosen:
        methods = [result["method"] for result in results]
        differences = chosen["sts"].differences(methods, arguments.seed)
    return {"models": results, "differences": differences}


def print_tables(result: dict[str, Any]) -> None:
    """Prints a table for each suite, one row a model or method, under what scores depend on.

    Of several seeds the mean and the standard deviation of a single one stand there.
    """
    results = result.get("models", [result])
    methods: dict[str, list[dict[str, Any]]] = {}
    for one in results:
        methods.setdefault(one.get("method", one["model"]), []).append(one)
    members = "; ".join(
        "{model}: {towers} tower(s), {pooling} pooling, max_len {max_len}".format(**member)
        for one in results
        for member in one["members"]
    )
    for suite, headline in HEADLINES.items():
        if suite not in results[0]:
            continue
        rows = {
            method: [one[suite][headline] for one in seeds] for method, seeds in methods.items()
        }
        _print(rows, f"{members}; {results[0][suite]['protocol']}")
    if result.get("differences"):
        rows = {method: [found["average"]] for method, found in result["differences"].items()}
        reference = results[0]["method"]
        _print(rows, f"average minus that of {reference}, and its 95 % bootstrap interval")


def _chosen_suites(arguments: Arguments) -> dict[str, Any]:
    given = {"sts": arguments.sts}
    chosen = [suite for suite, data in given.items() if data]
    if arguments.suite is not None:
        chosen = list(given) if arguments.suite == "all" else [arguments.suite]
    if not chosen:
        raise UserError("There is nothing to score: give --sts FOLDER.")
    for suite in chosen:
        if not given[suite]:
            raise UserError(f"--suite {arguments.suite} needs --{suite}: give its data.")
    return {suite: suites.SUITES[suite](given[suite]) for suite in chosen}


def _conditions(seed: int) -> dict[str, Any]:
    versions = {library: version(library) for library in LIBRARIES}
    return {
        "seed": seed,
        "device": jax.devices()[0].device_kind,
        "versions": {"jtcse_jax": jtcse_jax.__version__} | versions,
    }


def _print(rows: dict[str, Sequence[dict[str, Any]]], caption: str) -> None:
    table = Table(Column("", overflow="fold"), box=SIMPLE_HEAD, pad_edge=False)
    table.caption = Text(caption)  # a path may look like markup
    columns = next(iter(rows.values()))[0]
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for method, seeds in rows.items():
        table.add_row(Text(method), *(_cell([one[name] for one in seeds]) for name in columns))
    rich.print(table)


def _cell(values: list[float]) -> str:
    deviation = f"\n± {np.std(values, ddof=1):.2f}" if len(values) > 1 else ""
    return f"{np.mean(values):.2f}{deviation}"


@one_line_errors
def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    arguments = tyro.cli(Arguments, prog="python -m jtcse_jax.evaluate")
    result = evaluate(arguments)
    print_tables(result)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        try:
            Path(arguments.output).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--output {arguments.output}: {error.strerror}.") from error


if __name__ == "__main__":
    main()
