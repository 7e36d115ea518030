"""`python -m jtcse_jax.encode --model PATH --input FILE --output vectors.npy`."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import tyro

from jtcse_jax import saved_model
from jtcse_jax.data.sources import open_source
from jtcse_jax.encoder import SentenceEncoder
from jtcse_jax.errors import UserError, one_line_errors


@dataclass(frozen=True)
class Arguments:
    """Encodes sentences into a .npy file of float32 vectors, one row for each."""

    model: str
    """A workdir, an exported folder, or a Hugging Face BERT or RoBERTa folder or hub name."""
    input: str
    """Sentences, one a line: a file or glob, plain, .gz or .xz."""
    output: str
    """The .npy file to write; must not exist."""
    normalize: bool = False
    """Scale the vectors to length 1."""
    step: int | None = None
    """Step of a workdir; by default the best by dev score, or the newest."""
    pooling: Literal["cls", "mean"] | None = None
    """Needed where the model's folder does not say it."""
    max_len: int | None = None
    """Longest sentence in tokens; by default what the model's folder says, or 128."""


def encode(arguments: Arguments) -> None:
    """Writes the vectors. Raises UserError for blank lines: rows could not be told from lines."""
    output = Path(arguments.output)
    if output.exists():
        raise UserError(f"--output {output}: exists already; name a new file.")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}; make it first.")
    source = open_source(arguments.input)
    if source.views > 1:
        raise UserError(f"--input {arguments.input}: lines of two sentences; give one a line.")
    sentences = list(source.read())
    if source.blank:
        raise UserError(
            f"--input {arguments.input}: {source.blank} blank lines, so that row n of the output "
            "would not be line n: remove them."
        )
    model = saved_model.load(
        arguments.model,
        step=arguments.step,
        pooling=arguments.pooling,
        max_len=arguments.max_len,
    )
    print(f"model: {model.source}", file=sys.stderr)
    vectors = SentenceEncoder.of(model).encode(sentences, normalize=arguments.normalize)
    try:
        with output.open("xb") as file:
            np.save(file, vectors)
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}.") from error
    print(f"{output}: {vectors.shape[0]:,} vectors of {vectors.shape[1]}", file=sys.stderr)


@one_line_errors
def main() -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    encode(tyro.cli(Arguments, prog="python -m jtcse_jax.encode"))


if __name__ == "__main__":
    main()
