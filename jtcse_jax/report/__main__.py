"""`python -m jtcse_jax.report WORKDIR... --output report.html`: one page about training runs."""

import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jtcse_jax.architecture import Pooling
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.development import Development
from jtcse_jax.report.models import Look, look_at
from jtcse_jax.report.page import render
from jtcse_jax.report.runs import Run, find_runs, read_results
from jtcse_jax.runtime.command import command
from jtcse_jax.runtime.environment import environment
from jtcse_jax.runtime.files import check_replaceable, replace


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Writes one HTML page about runs: how they trained, their scores, and their models' insides.

    The page is self-contained: it opens without network, on a phone, and prints.
    """

    workdirs: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="WORKDIR...")]
    """Workdirs of runs, of pipelines (all their stages, in order), or folders of models."""
    output: str = "report.html"
    """The page; an existing file is replaced."""
    scores: tuple[str, ...] = ()
    """Files from `python -m jtcse_jax.evaluate --output`, for the tables."""
    dev: str | None = None
    """Scored pairs for inspecting models, as in data.dev; by default each run's own, or `builtin`
    if it has none."""
    models: bool = True
    """Read the weights, for similarities, spectrum, attention and nearest neighbours."""
    pooling: Pooling | None = None
    """Pooling of folders that do not define it."""


def report(arguments: Arguments) -> None:
    """Writes the page.

    Raises UserError for a folder without a run or a model, a damaged log, an unreadable --dev, a
    file that cannot be written, and if matplotlib or jinja2 is not installed. For a model that
    cannot be inspected the page has the reason.
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
    """Checked before the work, which may take minutes."""
    for package in ("matplotlib", "jinja2"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise UserError(
                f"The report needs the package {package}: pip install {package}"
            ) from error


def _read_all(files: Sequence[str]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Results of all files, and differences by the reference model."""
    results: list[dict[str, Any]] = []
    differences: dict[str, Any] = {}
    for file in files:
        found, between = read_results(file)
        results += found
        if between:
            differences[f"{found[0]['method']} ({Path(file).name})"] = between
    return results, differences


def _look_at_all(runs: Sequence[Run], arguments: Arguments) -> Mapping[str, Look]:
    """The inspected models, by run; the notes of other runs have the reason."""
    # All pairs are read before the first model. A run's own dev file may be gone since training.
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
        if not run.embeds:
            run.notes.append("a language model: its sentence vectors are not inspected")
            continue
        dev = names[run.name] or "builtin"
        if isinstance(pairs[dev], UserError):
            run.notes.append(f"the model is not inspected: {pairs[dev]}; name other pairs, --dev")
            continue
        print(f"{run.name}: inspecting it on {len(pairs[dev])} pairs of {dev}", file=sys.stderr)
        try:
            looks[run.name] = look_at(run.folder, pairs[dev], dev=dev, pooling=arguments.pooling)
        except UserError as error:
            run.notes.append(f"the model is not inspected: {error}")
    return looks


main = command("report", Arguments, report)


if __name__ == "__main__":
    main()
