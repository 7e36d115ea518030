"""`python -m jtcse_jax.export --model WORKDIR --output FOLDER`: Hugging Face folders."""

import logging
from dataclasses import dataclass
from pathlib import Path

import tyro

from jtcse_jax import saved_model
from jtcse_jax.errors import one_line_errors
from jtcse_jax.saved_model import ModelArguments


@dataclass(frozen=True, kw_only=True)
class Arguments(ModelArguments):
    """Writes a model as Hugging Face folders: FOLDER itself for one tower, FOLDER/tower_K for
    more. Each opens with transformers; all together again with `SentenceEncoder.load(FOLDER)`."""

    output: str
    """The folder to write; new or empty."""


def export(arguments: Arguments) -> None:
    """Writes the folders. Raises UserError where the output is not empty."""
    model = arguments.load_model()
    saved_model.export(model, Path(arguments.output))
    print(f"{model.source} -> {arguments.output}")


@one_line_errors
def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    export(tyro.cli(Arguments, prog="python -m jtcse_jax.export"))


if __name__ == "__main__":
    main()
