"""`python -m jtcse_jax.pairs --model PATH --input FILE --output pairs.tsv`: near-duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from jtcse_jax.data import text_files
from jtcse_jax.data.text_arguments import TextArguments
from jtcse_jax.data.tsv_file import check_tsv, say, to_cell
from jtcse_jax.encoding.encoder import BLOCK, SentenceEncoder, warn_of_losses
from jtcse_jax.encoding.exact_index import unit
from jtcse_jax.encoding.pairs import best_pairs, merged
from jtcse_jax.encoding.progress import progress_bar
from jtcse_jax.encoding.vector_file import kept_vectors, open_vectors
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.command import command
from jtcse_jax.runtime.files import check_new
from jtcse_jax.runtime.output import Output
from jtcse_jax.store import ensemble
from jtcse_jax.store.ensemble import Member, PromptArguments
from jtcse_jax.user_path import user_path

_PART = 16_384  # sentences compared with all others: a killed process loses one part


@dataclass(frozen=True, kw_only=True)
class Arguments(PromptArguments, TextArguments):
    """Finds the most similar pairs of sentences of a text: near-duplicates and paraphrases.

    Writes lines of cosine, sentence and sentence, separated by tabs, best first. Every sentence is
    compared with every other one, exactly; equal lines are a pair too. The sentences and their
    vectors are kept in memory. If the command is killed, the same command resumes. Started several
    times with one output, the processes share the work.
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
    source = arguments.open_sentences()
    sentences = list(source.read())
    members, stored = (), None
    if arguments.vectors:
        arguments.check_numbers(source)
        stored = open_vectors(arguments.vectors)
        if len(stored) != len(sentences):
            raise UserError(
                f"--vectors {arguments.vectors} has {len(stored):,} vectors, but --input has "
                f"{len(sentences):,} sentences: encode this text."
            )
        origin = text_files.identity([user_path(arguments.vectors)])
    else:
        members = arguments.load_members()
        origin = ensemble.fingerprint(members)
    output = Output(user_path(arguments.output), -(-len(sentences) // _PART))
    settings = {"command": "pairs", "input": source.fingerprint(), "--model or --vectors": origin}
    if not output.begin(settings | {"--top": arguments.top, "--threshold": arguments.threshold}):
        check_new(arguments.output)
    if stored is None:
        stored = _encoded(members, sentences, output.folder)
    _compare(output, unit(stored), arguments)
    with output.last_step() as ours:
        if ours:
            _publish(output, sentences, arguments.top)


def _encoded(members: Sequence[Member], sentences: list[str], folder: Path) -> np.ndarray:
    encoder = SentenceEncoder.of(members)
    path, width = folder / "vectors.npy", encoder.kept_width()
    vectors = kept_vectors(path, sentences, width, BLOCK, encoder.encode_block)
    warn_of_losses(encoder)
    return vectors


def _compare(output: Output, vectors: np.ndarray, arguments: Arguments) -> None:
    """Writes the best pairs of each part that is missing."""
    with progress_bar(len(vectors)) as progress:
        task = progress.task_ids[0]
        for number in output.claim():
            progress.update(task, completed=output.num_done() * _PART)
            found = best_pairs(
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


def _publish(output: Output, sentences: list[str], top: int) -> None:
    parts = [
        np.load(output.folder / f"{output.part(n)}.npy", allow_pickle=False)
        for n in range(output.num_parts)
    ]
    best = merged(parts, top)
    with output.new_file("whole.tsv") as file:
        for cosine, first, second in best.tolist():
            line = f"{cosine:.6f}\t{to_cell(sentences[first])}\t{to_cell(sentences[second])}\n"
            file.write(line.encode())
    output.publish(output.folder / "whole.tsv")
    say(f"{output.path}: {len(best):,} pairs")


main = command("pairs", Arguments, pairs)


if __name__ == "__main__":
    main()
