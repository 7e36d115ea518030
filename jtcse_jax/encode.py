"""`python -m jtcse_jax.encode --model PATH --input FILE --output vectors.npy`."""

import sys
from dataclasses import dataclass
from functools import partial

from jtcse_jax.data.blocks import Blocks
from jtcse_jax.data.text_arguments import TextArguments
from jtcse_jax.data.unknown import percentage
from jtcse_jax.encoding.encoder import BLOCK, SentenceEncoder, warn_of_losses
from jtcse_jax.encoding.vector_file import VectorFile
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.command import command
from jtcse_jax.runtime.files import check_new
from jtcse_jax.store import ensemble
from jtcse_jax.store.ensemble import PromptArguments


@dataclass(frozen=True, kw_only=True)
class Arguments(PromptArguments, TextArguments):
    """Encodes sentences into a .npy file of float32 vectors: row n is line n.

    Memory use does not grow with the text. If the command is killed, the same command resumes. A
    process uses all devices of its machine. Started on several machines that share the output's
    folder, the processes share the work.
    """

    output: str
    """The .npy file to write; it must not exist. Until it is complete it is OUTPUT.partial."""
    normalize: bool = False
    """Scale the vectors to length 1."""
    truncate_dim: int | None = None
    """Keep only this many components of each vector, the first ones."""
    batch_size: int = BLOCK
    """Number of sentences encoded and saved together."""


def encode(arguments: Arguments) -> None:
    """Writes the vectors, or this process's share of them.

    Raises UserError, before any work, for an output that cannot be written, and for a text with
    errors, pairs or blank lines (row n would not be line n).
    """
    output = check_new(arguments.output)
    if arguments.batch_size < 1:
        raise UserError(f"--batch-size {arguments.batch_size}: give at least 1.")
    if output.suffix not in ("", ".npy"):
        raise UserError(
            f"--output {output}: vectors are written as a .npy file, so give a name that ends in "
            ".npy (numpy.load reads it, and numpy.savetxt writes it as text)."
        )
    text = arguments.open_sentences()
    blocks = Blocks(text, arguments.batch_size)
    arguments.check_numbers(text)
    rows = blocks.num_sentences
    members = arguments.load_members()
    print(f"model: {ensemble.source(members)}", file=sys.stderr)
    encoder = SentenceEncoder.of(members)
    settings = {
        "input": text.fingerprint(),
        "model": ensemble.fingerprint(members),
        "normalize": arguments.normalize,
    }
    width = encoder.kept_width(arguments.truncate_dim)
    file = VectorFile(output, rows, width, arguments.batch_size, settings)
    options = {"normalize_embeddings": arguments.normalize, "truncate_dim": arguments.truncate_dim}
    name = "sentences encoded since this start" if file.rows_done else "sentences"
    file.fill(blocks, partial(encoder.encode_block, **options))
    warn_of_losses(encoder, name=name)
    unknown = percentage(encoder.unknown, encoder.characters)
    print(
        f"{output}: {rows:,} vectors of {width}; {name}: {unknown} of the characters unknown",
        file=sys.stderr,
    )


main = command("encode", Arguments, encode)


if __name__ == "__main__":
    main()
