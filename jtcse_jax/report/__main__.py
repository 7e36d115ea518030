"""`python -m jtcse_jax.report WORKDIR... --output report.html`: one page about training runs."""

import contextlib
import glob
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from jtcse_jax.architecture import Pooling
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation import development
from jtcse_jax.evaluation.examples import Examples, scored_pairs, text_sentences
from jtcse_jax.report.models import Look, look_at
from jtcse_jax.report.page import render
from jtcse_jax.report.runs import Run, find_runs, read_results
from jtcse_jax.runtime.command import command
from jtcse_jax.runtime.environment import environment
from jtcse_jax.runtime.files import check_replaceable, replace
from jtcse_jax.user_path import user_path


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
    """Scored pairs for inspecting models, as in data.dev. By default each run's own; for a run that
    has none, sentences of its text, or if that is gone `builtin`, English pairs."""
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
    # All is read before the first model.
    examples: dict[str, Examples] = {}
    for run in runs:
        if not run.embeds:
            run.notes.append("a language model: its sentence vectors are not inspected")
            continue
        try:
            examples[run.name] = _examples(run, arguments.dev)
        except UserError as error:
            if arguments.dev:
                raise
            run.notes.append(f"the model is not inspected: {error}; name other pairs, --dev")
    looks = {}
    for run in runs:
        if run.name not in examples:
            continue
        print(f"{run.name}: inspecting it on {examples[run.name]}", file=sys.stderr)
        try:
            look = look_at(run.folder, examples[run.name], pooling=arguments.pooling)
        except UserError as error:
            run.notes.append(f"the model is not inspected: {error}")
            continue
        looks[run.name] = look
        run.notes.append(f"inspected on {examples[run.name]}")
        cosine = look.diagnostics["embeddings"]["anisotropy"]
        if cosine > development.COLLAPSED:
            run.notes.append(
                "its vectors have collapsed: different sentences have a mean cosine of "
                f"{cosine:.3f}"
            )
    return looks


def _examples(run: Run, dev: str | None) -> Examples:
    """What to inspect a run's model on; a file may be gone since training."""
    data = run.config.get("data", {})
    if name := dev or data.get("dev"):
        return scored_pairs(name)
    source = data.get("source", "")
    files = glob.glob(str(user_path(source)))
    # Nothing is downloaded for it, and no pipe is waited for.
    if source == "stdlib" or (files and all(Path(file).is_file() for file in files)):
        with contextlib.suppress(UserError):
            return text_sentences(source, tuple(data.get("columns", ())))
    return scored_pairs("builtin")


main = command("report", Arguments, report)


if __name__ == "__main__":
    main()
