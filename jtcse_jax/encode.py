"""`python -m jtcse_jax.encode --model PATH --input FILE --output vectors.npy`."""

import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import tyro

from jtcse_jax.data.sources import open_source
from jtcse_jax.encoder import SentenceEncoder
from jtcse_jax.errors import UserError, one_line_errors
from jtcse_jax.saved_model import ModelArguments


@dataclass(frozen=True, kw_only=True)
class Arguments(ModelArguments):
    """Encodes sentences into a .npy file of float32 vectors, one row for each."""

    input: str
    """Sentences, one a line: a file or glob, plain, .gz or .xz."""
    output: str
    """The .npy file to write; must not exist."""
    normalize: bool = False
    """Scale the vectors to length 1."""


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
    model = arguments.load_model()
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
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    encode(tyro.cli(Arguments, prog="python -m jtcse_jax.encode"))


if __name__ == "__main__":
    main()
