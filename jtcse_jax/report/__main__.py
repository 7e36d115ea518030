"""`python -m jtcse_jax.report WORKDIR... --output report.html`: runs as one page to look at."""

import importlib
import logging
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from jtcse_jax.environment import environment
from jtcse_jax.errors import UserError, one_line_errors
from jtcse_jax.evaluation.development import Development
from jtcse_jax.output import check_replaceable, replace
from jtcse_jax.report.models import Look, look_at
from jtcse_jax.report.page import render
from jtcse_jax.report.runs import Run, find_runs, read_results

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Writes one HTML page about runs: how they trained, what they score, what is inside.

    The page needs nothing but itself: it opens without network, on a phone, and on paper.
    """

    workdirs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR...")]
    """Workdirs of runs, of pipelines (all their stages, in order), or folders of models."""
    output: str = "report.html"
    """The page; a file that is there is replaced."""
    scores: tuple[str, ...] = ()
    """Files of `python -m jtcse_jax.evaluate --output`, for the tables."""
    dev: str | None = None
    """Scored pairs that models are looked at with, as data.dev; by default each run's own, or
    `builtin` where it has none."""
    models: bool = True
    """Read the weights: similarities, spectrum, attention and nearest neighbours come of them."""
    pooling: Literal["cls", "mean"] | None = None
    """Of folders that do not say it."""


def report(arguments: Arguments) -> None:
    """Writes the page.

    Raises UserError for a folder without a run or a model, a damaged log, a --dev that cannot be
    read, a file that cannot be written, and where matplotlib or jinja2 is not installed. A model
    that cannot be looked at is told on the page.
    """
    output = check_replaceable(arguments.output)
    _check_installed()
    runs = find_runs(arguments.workdirs)
    results, differences = _read_all(arguments.scores)
    looks = _look_at_all(runs, arguments) if arguments.models else {}
    if not arguments.models:
        for run in runs:
            run.notes.append("the model was not read (--no-models)")
    title = ", ".join(Path(folder).resolve().name for folder in arguments.workdirs)
    page = render(title, runs, looks, results, differences, environment())
    replace(output, page)
    print(f"{output}: {len(page.encode()) / 1e6:.1f} MB, {len(runs)} run(s)")


def _check_installed() -> None:
    """Before the work, which may take minutes."""
    for package in ("matplotlib", "jinja2"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"The report needs the package {package}: pip install {package}"
            ) from error


def _read_all(files: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Results of all files, and differences by the model that others are compared with."""
    results: list[dict[str, Any]] = []
    differences: dict[str, Any] = {}
    for file in files:
        found, between = read_results(file)
        results += found
        if between:
            differences[f"{found[0]['method']} ({Path(file).name})"] = between
    return results, differences


def _look_at_all(runs: Sequence[Run], arguments: Arguments) -> Mapping[str, Look]:
    """What the models do, by run; the notes of a run say why there is nothing of it."""
    # All pairs are read before the first model. A run's own may have moved since it trained.
    names = {run.name: arguments.dev or run.config.get("data", {}).get("dev") for run in runs}
    pairs = {}
    for dev in {name or "builtin" for name in names.values()}:
        try:
            pairs[dev] = Development(dev).pairs
        except UserError as error:
            if arguments.dev:
                raise
            pairs[dev] = error
    looks = {}
    for run in runs:
        if run.objective == "mlm":
            run.notes.append("a language model: its sentence vectors are not looked at")
            continue
        dev = names[run.name] or "builtin"
        if isinstance(pairs[dev], UserError):
            run.notes.append(f"the model is not looked at: {pairs[dev]}; name other pairs, --dev")
            continue
        print(f"{run.name}: looking at {len(pairs[dev])} pairs of {dev}", file=sys.stderr)
        try:
            looks[run.name] = look_at(run.folder, pairs[dev], dev=dev, pooling=arguments.pooling)
        except UserError as error:
            run.notes.append(f"the model is not looked at: {error}")
    return looks


@one_line_errors
def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    report(tyro.cli(Arguments, prog="python -m jtcse_jax.report"))


if __name__ == "__main__":
    main()
