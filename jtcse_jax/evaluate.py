"""`python -m jtcse_jax.evaluate --model PATH --sts FOLDER`: scores of one model, or of several."""

import json
import logging
import time
from collections.abc import Sequence
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

from jtcse_jax.ensemble import ModelArguments
from jtcse_jax.environment import environment
from jtcse_jax.errors import UserError, one_line_errors
from jtcse_jax.suites import Diagnostics, Model, Mteb, Sts, Transfer, load_model

SUITES = {"sts": Sts, "transfer": Transfer, "diagnostics": Diagnostics, "mteb": Mteb}
ZERO_SHOT = "configs/zero_shot_tasks.yaml"


logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Arguments(ModelArguments):
    """Scores a model, with the protocol beside each score.

    A model is whatever `--model` takes, or `sentence-transformers:NAME`. Several seeds of one
    method are given with commas, `runs/0,runs/1`.
    """

    suite: Literal["sts", "transfer", "mteb", "diagnostics", "all"] | None = None
    """What is scored; by default all that data is given for."""
    sts: str | None = None
    """Folder of STS12-16, STS-B and SICK-R in SentEval's layout (STS12-en-test, ...), or a file of
    your own, `sentence1<TAB>sentence2<TAB>score`."""
    transfer: str | None = None
    """Folder of MR, CR, SUBJ, MPQA, SST2, TREC and MRPC in SentEval's layout (CR, MPQA, ...)."""
    dev: str | None = None
    """Pairs that the diagnostics look at: an STS-B folder, a file as for --sts, or `builtin`, which
    --suite diagnostics takes by default."""
    mteb: str | None = None
    """List of MTEB's tasks; --suite mteb takes configs/zero_shot_tasks.yaml by default."""
    mteb_tasks: tuple[str, ...] = ()
    """Names of the tasks to run; by default all of the list."""
    mteb_results: str = "mteb_results"
    """Folder that keeps each finished task of MTEB, so that a later start goes on."""
    compare: tuple[str, ...] = ()
    """Models to put beside `--model`, with their differences from it."""
    seed: int = 0
    """Of what is drawn: folds, sentences, dropout views, bootstrap samples."""
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
    conditions = {"seed": arguments.seed, "environment": environment()}
    results = []
    for method in dict.fromkeys((arguments.model, *arguments.compare)):
        for name in method.split(","):
            model = load_model(name, **options)
            result = {"method": method} | model.description | conditions
            for suite, scorer in chosen.items():
                result[suite] = _score(suite, scorer, model, alone=len(chosen) == 1)
            results.append(result)
    if len(results) == 1:
        return {key: value for key, value in results[0].items() if key != "method"}
    differences = {}
    if "sts" in chosen and all("protocol" in result["sts"] for result in results):
        methods = [result["method"] for result in results]
        differences = chosen["sts"].differences(methods, arguments.seed)
    return {"models": results, "differences": differences}


def print_tables(result: dict[str, Any]) -> None:
    """Prints a table for each suite, one row a model or method, under what scores depend on.

    Of several seeds the mean and the standard deviation of a single one stand there.
    """
    results = result.get("models", [result])
    members = "; ".join(
        "{model}: {towers} tower(s), {pooling} pooling, max_len {max_len}".format(**member)
        for one in results
        for member in one["members"]
    )
    for suite, scorer in SUITES.items():
        rows: dict[str, list[dict[str, Any]]] = {}
        for one in results:
            if "protocol" in one.get(suite, {}):
                method = one.get("method", one["model"])
                rows.setdefault(method, []).append(scorer.headline(one[suite]))
        if rows:
            _print(suite, rows, f"{members}; {results[0][suite]['protocol']}")
    if result.get("differences"):
        rows = {method: [found["average"]] for method, found in result["differences"].items()}
        reference = results[0]["method"]
        _print("sts", rows, f"average minus that of {reference}, with its 95 % bootstrap interval")


def _chosen_suites(arguments: Arguments) -> dict[str, Any]:
    """The suites that are asked for, their data read."""
    named = arguments.suite
    data = {
        "sts": arguments.sts,
        "transfer": arguments.transfer,
        "diagnostics": arguments.dev or ("builtin" if named in ("diagnostics", "all") else None),
        "mteb": arguments.mteb
        or (ZERO_SHOT if named in ("mteb", "all") or arguments.mteb_tasks else None),
    }
    if named is None:
        chosen = [suite for suite in data if data[suite]]
    else:
        chosen = list(data) if named == "all" else [named]
    if not chosen:
        raise UserError("There is nothing to score: give --sts FOLDER, or name a --suite.")
    for suite in chosen:
        if not data[suite]:
            raise UserError(f"--suite {named} needs --{suite} FOLDER: give its data.")
    make = {
        "sts": Sts,
        "transfer": partial(Transfer, seed=arguments.seed),
        "diagnostics": partial(Diagnostics, seed=arguments.seed),
        "mteb": partial(Mteb, names=arguments.mteb_tasks, folder=arguments.mteb_results),
    }
    return {suite: make[suite](data[suite]) for suite in chosen}


def _score(suite: str, scorer: Any, model: Model, *, alone: bool) -> dict[str, Any]:
    """A suite's result with its seconds; where others run beside it, an error is one of them."""
    start = time.perf_counter()
    try:
        result = scorer.score(model)
    except UserError as error:
        if alone:
            raise
        logger.warning("%s: %s", suite, error)
        return {"error": str(error)}
    return result | {"seconds": round(time.perf_counter() - start, 1)}


def _print(title: str, rows: dict[str, Sequence[dict[str, Any]]], caption: str) -> None:
    table = Table(
        Column(title, overflow="fold", min_width=len(title)), box=SIMPLE_HEAD, pad_edge=False
    )
    table.caption = Text(caption)  # a path may look like markup
    columns = list(dict.fromkeys(name for seeds in rows.values() for one in seeds for name in one))
    for name in columns:
        table.add_column(name, justify="right", no_wrap=True)
    for method, seeds in rows.items():
        cells = (_cell([one.get(name) for one in seeds]) for name in columns)
        table.add_row(Text(method), *cells)
    rich.print(table)


def _cell(values: list[float | None]) -> str:
    if None in values:
        return ""
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
