"""`python -m jtcse_jax.evaluate --model PATH --sts FOLDER`: the seven STS tasks."""

import json
import logging
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import jax
import rich
import tyro
from rich.table import Table
from rich.text import Text

import jtcse_jax
from jtcse_jax import ensemble
from jtcse_jax.encoder import SentenceEncoder
from jtcse_jax.ensemble import ModelArguments
from jtcse_jax.errors import UserError, one_line_errors
from jtcse_jax.evaluation.sts import PROTOCOL, evaluate_sts, load_sts

LIBRARIES = ("jax", "flax", "transformers", "tokenizers", "numpy", "scipy")


@dataclass(frozen=True, kw_only=True)
class Arguments(ModelArguments):
    """Scores a model on STS12-16, STS-B and SICK-R: Spearman x 100 in the "all" setting."""

    sts: str
    """Folder of the STS tasks in SentEval's layout (STS12-en-test, ..., STSBenchmark, SICK)."""
    output: str | None = None
    """File that the JSON is written to as well."""


def evaluate(arguments: Arguments) -> dict[str, Any]:
    """Scores by task, with the protocol and the versions beside them, ready for JSON.

    Raises UserError as the readers of the model and of the tasks do.
    """
    if arguments.output and not Path(arguments.output).parent.is_dir():
        raise UserError(f"--output {arguments.output}: there is no such folder; make it first.")
    tasks = load_sts(arguments.sts)
    members = arguments.load_members()
    scores = evaluate_sts(SentenceEncoder.of(members).encode, tasks)
    return {
        "model": ensemble.source(members),
        "protocol": PROTOCOL,
        "members": [
            {
                "weight": weight,
                "model": model.source,
                "towers": model.bank.num_towers,
                "pooling": model.bank.pooling,
                "max_len": model.max_len,
            }
            for weight, model in members
        ],
        "spearman": {name: round(100 * score.spearman, 2) for name, score in scores.items()},
        "pearson": {name: round(100 * score.pearson, 2) for name, score in scores.items()},
        "pairs": {name: score.pairs for name, score in scores.items()},
        "device": jax.devices()[0].device_kind,
        "versions": {"jtcse_jax": jtcse_jax.__version__}
        | {library: version(library) for library in LIBRARIES},
    }


def print_table(result: dict[str, Any]) -> None:
    """Prints one row of scores under what they depend on."""
    members = "; ".join(
        "{model}: {towers} tower(s), {pooling} pooling, max_len {max_len}".format(**member)
        for member in result["members"]
    )
    caption = f"{members}; {result['protocol']}"
    table = Table(caption=Text(caption))  # a path may look like markup
    for name in result["spearman"]:
        table.add_column(name, justify="right", no_wrap=True)
    table.add_row(*(f"{score:.2f}" for score in result["spearman"].values()))
    rich.print(table)


@one_line_errors
def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    arguments = tyro.cli(Arguments, prog="python -m jtcse_jax.evaluate")
    result = evaluate(arguments)
    print_table(result)
    text = json.dumps(result, indent=2)
    print(text)
    if arguments.output:
        try:
            Path(arguments.output).write_text(text + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"--output {arguments.output}: {error.strerror}.") from error


if __name__ == "__main__":
    main()
