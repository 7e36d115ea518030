"""`python -m jtcse_jax.pairs --model PATH --input FILE --output pairs.tsv`: near-duplicates."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from jtcse_jax.data import text_files
from jtcse_jax.data.blocks import Blocks, sentences_at
from jtcse_jax.data.text_arguments import TextArguments
from jtcse_jax.data.tsv_file import check_tsv, say, to_cell
from jtcse_jax.encoding.encoder import BLOCK, SentenceEncoder, warn_of_losses
from jtcse_jax.encoding.exact_index import UnitVectors
from jtcse_jax.encoding.index import Backend, mapped_index
from jtcse_jax.encoding.pairs import PAIR, best_pairs, merged, near_pairs
from jtcse_jax.encoding.progress import progress_bar
from jtcse_jax.encoding.vector_file import kept_vectors, open_vectors
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.command import command
from jtcse_jax.runtime.files import check_new
from jtcse_jax.runtime.output import Output
from jtcse_jax.store import ensemble
from jtcse_jax.store.ensemble import PromptArguments
from jtcse_jax.user_path import user_path

_PART = 16_384  # sentences compared with all others: a killed process loses one part


@dataclass(frozen=True, kw_only=True)
class Arguments(PromptArguments, TextArguments):
    """Finds the most similar pairs of sentences of a text: near-duplicates and paraphrases.

    Writes lines of cosine, two sentences and their numbers in the text (from 1; blank lines are not
    counted), separated by tabs, best first. Every sentence is
    compared with every other one, or with --backend with its neighbours; equal lines are a pair
    too. Memory use does not grow with the text: the vectors stay in a file. If the command is
    killed, the same command resumes. Started several times with one output, the processes share the
    work.
    """

    output: str
    """The .tsv file to write; it must not exist. Until it is complete it is OUTPUT.partial."""
    model: str = ""
    """The model, named as in `encode`; not needed with --vectors."""
    vectors: str | None = None
    """The .npy file that `encode` wrote for --input, so as not to encode again."""
    top: int = 1000
    """Largest number of pairs."""
    threshold: float | None = None
    """Smallest cosine of a pair; by default no limit."""
    backend: Backend = "exact"
    """exact compares all; with the others each sentence is compared with the 100 nearest that an
    index of faiss finds, as in `search`: hnsw and ivfpq for millions of sentences. flat and hnsw
    have the vectors in memory, ivfpq a sixteenth of their size."""


def pairs(arguments: Arguments) -> None:
    """Writes the pairs, or this process's share of them.

    Raises UserError for arguments that do not fit each other, and the errors of the readers of
    model, text and vectors, and of `Output`.
    """
    check_tsv(arguments.output)
    if arguments.top < 1:
        raise UserError(f"--top {arguments.top}: ask for at least one pair.")
    if bool(arguments.model) == bool(arguments.vectors):
        raise UserError("Give --model, or --vectors that a model has written, and not both.")
    text = Blocks(arguments.open_sentences(), BLOCK)
    encoder, stored = None, None
    if arguments.vectors:
        arguments.check_numbers(text.source)
        stored = _stored(arguments.vectors, text)
        origin = text_files.identity([user_path(arguments.vectors)])
    else:
        members = arguments.load_members()
        encoder, origin = SentenceEncoder.of(members), ensemble.fingerprint(members)
    output = Output(user_path(arguments.output), -(-text.num_sentences // _PART))
    options = {"--top": arguments.top, "--threshold": arguments.threshold}
    options["--backend"] = arguments.backend
    settings = {"input": text.source.fingerprint(), "--model or --vectors": origin}
    if not output.begin({"command": "pairs"} | settings | options):
        check_new(arguments.output)
    if encoder is not None:
        stored = _encoded(encoder, text, output.folder)
    assert stored is not None  # the arguments name a model or vectors
    _compare(output, stored, arguments)
    with output.last_step() as ours:
        if ours:
            _publish(output, text, arguments.top)


def _stored(name: str, text: Blocks) -> np.ndarray:
    """The vectors of `--vectors NAME`; UserError if they are not as many as the sentences."""
    stored = open_vectors(name)
    if len(stored) != text.num_sentences:
        raise UserError(
            f"--vectors {name} has {len(stored):,} vectors, but --input has "
            f"{text.num_sentences:,} sentences: encode this text."
        )
    return stored


def _encoded(encoder: SentenceEncoder, text: Blocks, folder: Path) -> np.ndarray:
    """The vectors of the text, from a file in the folder of the output."""
    path, width = folder / "vectors.npy", encoder.kept_width()
    vectors = kept_vectors(path, text, text.num_sentences, width, text.size, encoder.encode_block)
    warn_of_losses(encoder)
    return vectors


def _compare(output: Output, stored: np.ndarray, arguments: Arguments) -> None:
    """Writes the best pairs of each part that is missing."""
    find, vectors = best_pairs, UnitVectors(stored)
    if arguments.backend != "exact":
        path = output.folder / "index.faiss"
        find = partial(near_pairs, mapped_index(arguments.backend, stored, path))
    with progress_bar(len(vectors)) as progress:
        task = progress.task_ids[0]
        for number in output.claim():
            progress.update(task, completed=output.num_done() * _PART)
            found = find(
                vectors,
                arguments.top,
                arguments.threshold,
                rows=range(number * _PART, min((number + 1) * _PART, len(vectors))),
                done=partial(progress.advance, task),
            )
            with output.new_file(f"{output.part(number)}.npy") as file:
                np.save(file, found)
            output.mark(number)
        progress.update(task, completed=len(vectors))


def _publish(output: Output, text: Blocks, top: int) -> None:
    best = np.empty(0, PAIR)
    for number in range(output.num_parts):
        part = np.load(output.folder / f"{output.part(number)}.npy", allow_pickle=False)
        best = merged([best, part], top)
    numbers = np.unique([best["first"], best["second"]]).tolist()
    cells = {number: to_cell(each) for number, each in sentences_at(text.source, numbers).items()}
    with output.new_file("whole.tsv") as file:
        for cosine, first, second in best.tolist():
            line = f"{cosine:.6f}", cells[first], cells[second], str(first + 1), str(second + 1)
            file.write(("\t".join(line) + "\n").encode())
    output.publish(output.folder / "whole.tsv")
    limit = f" (the limit --top {top}: there may be more)" if len(best) == top else ""
    say(f"{output.path}: {len(best):,} pairs{limit}")


main = command("pairs", Arguments, pairs)


if __name__ == "__main__":
    main()
