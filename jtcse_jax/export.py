"""`python -m jtcse_jax.export --model WORKDIR --output FOLDER`: Hugging Face folders."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro

from jtcse_jax import saved_model
from jtcse_jax.errors import one_line_errors


@dataclass(frozen=True)
class Arguments:
    """Writes a model as Hugging Face folders: FOLDER itself for one tower, FOLDER/tower_K for
    more. Each opens with transformers; all together again with `SentenceEncoder.load(FOLDER)`."""

    model: str
    """A workdir, an exported folder, or a Hugging Face BERT or RoBERTa folder or hub name."""
    output: str
    """The folder to write; new or empty."""
    step: int | None = None
    """Step of a workdir; by default the best by dev score, or the newest."""
    pooling: Literal["cls", "mean"] | None = None
    """Needed where the model's folder does not say it."""
    max_len: int | None = None
    """Longest sentence in tokens; by default what the model's folder says, or 128."""


def export(arguments: Arguments) -> None:
    """Writes the folders. Raises UserError where the output is not empty."""
    model = saved_model.load(
        arguments.model,
        step=arguments.step,
        pooling=arguments.pooling,
        max_len=arguments.max_len,
    )
    saved_model.export(model, Path(arguments.output))
    print(f"{model.source} -> {arguments.output}")


@one_line_errors
def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    export(tyro.cli(Arguments, prog="python -m jtcse_jax.export"))


if __name__ == "__main__":
    main()
