"""`python -m jtcse_jax.search --model PATH --input FILE --query TEXT`: prints similar sentences."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import rich
import tyro
from rich.table import Table
from rich.text import Text

from jtcse_jax.data.blocks import Blocks
from jtcse_jax.data.text_arguments import TextArguments
from jtcse_jax.data.text_files import STDIN
from jtcse_jax.encoding.encoder import BLOCK, SentenceEncoder
from jtcse_jax.encoding.index import Backend
from jtcse_jax.encoding.searching import Hit
from jtcse_jax.encoding.vector_file import open_vectors
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.command import command
from jtcse_jax.store.ensemble import EncoderArguments


@dataclass(frozen=True, kw_only=True)
class Arguments(EncoderArguments, TextArguments):
    """Prints the sentences of a text that are nearest to queries, by the cosine of their vectors.

    Each has its number in the text: that of the line, or of the record of a table. Without --query,
    it reads queries from standard input, one per line. All sentences and vectors are in memory;
    with --vectors they stay in their files, for a text that is larger than the memory.
    """

    input: Annotated[str, tyro.conf.arg(aliases=("--source",))] = ""
    """The text, one sentence per line: a file or glob (plain, .gz or .xz), a table (name its
    columns), tfds:NAME:SPLIT:FIELD, hub:NAME:SPLIT:FIELD, stdlib, or - for standard input."""
    vectors: str | None = None
    """The .npy file that `encode` wrote for --input with this model, so as not to encode again.
    With --save-index or another --backend it is read into memory."""
    index: str | None = None
    """Folder of an index that --save-index wrote, in place of --input."""
    save_index: str | None = None
    """New folder for the index, for later searches."""
    query: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text to search for; may be given several times."""
    top_k: int = 5
    """Largest number of sentences printed per query."""
    prompt: str | None = None
    """Text put before each query; by default the prompt `query` of the model's folder, if any."""
    prompt_name: str | None = None
    """Name of a prompt of the model's folder, which is put before each query. Before each sentence
    of the text is the prompt `document`, if any."""
    threshold: float | None = None
    """Smallest cosine printed; by default no limit."""
    backend: Backend = "exact"
    """exact, or one of faiss (`pip install faiss-cpu`): flat compares all too, with more threads;
    hnsw and ivfpq are approximate, for millions of sentences."""
    json: bool = False
    """Print a JSON object per query, on one line, instead of a table."""


def search(arguments: Arguments) -> None:
    """Prints the hits of each query. Raises the errors of the readers of model and text."""
    if arguments.top_k < 1:
        raise UserError(f"--top-k {arguments.top_k}: ask for at least one sentence.")
    if bool(arguments.input) == bool(arguments.index):
        raise UserError("Give --input, a text, or --index, the folder of an index, and not both.")
    if arguments.vectors and arguments.index:
        raise UserError("--vectors belongs to --input; an --index has its own.")
    if arguments.backend != "exact" and arguments.index:
        raise UserError("--backend belongs to --input; an --index has its own.")
    if not all(map(str.strip, arguments.query)):
        raise UserError("--query '': give a text to search for.")
    if arguments.input == STDIN and not arguments.query:
        raise UserError("--input -: standard input is the text; give the queries with --query.")
    encoder = _with_index(arguments)
    if arguments.save_index:
        encoder.save_index(arguments.save_index)
        print(f"{arguments.save_index}: the index, for --index", file=sys.stderr)
    prompt, prompt_name = arguments.prompt, arguments.prompt_name
    print_one = print_json if arguments.json else print_hits
    # Given queries together, because a text that is in a file is read once for each search.
    for queries in [arguments.query] if arguments.query else ([one] for one in _lines_of_stdin()):
        found = encoder.search(
            queries, arguments.top_k, arguments.threshold, prompt=prompt, prompt_name=prompt_name
        )
        for query, hits in zip(queries, found, strict=True):
            print_one(query, hits)


def _with_index(arguments: Arguments) -> SentenceEncoder:
    """The encoder with the index of the text, or with the one that was saved."""
    if arguments.index:
        encoder = SentenceEncoder.of(arguments.load_members())
        encoder.load_index(arguments.index)
        return encoder
    source = arguments.open_sentences()
    vectors = open_vectors(arguments.vectors) if arguments.vectors else None
    if vectors is not None and arguments.backend == "exact" and not arguments.save_index:
        text = Blocks(source, BLOCK)
        arguments.check_numbers(source)
        encoder = SentenceEncoder.of(arguments.load_members())
        encoder.index_files(text, vectors)
        return encoder
    sentences = list(source.read())
    arguments.check_numbers(source)
    encoder = SentenceEncoder.of(arguments.load_members())
    encoder.build_index(
        sentences, vectors=vectors, backend=arguments.backend, show_progress_bar=True
    )
    return encoder


def print_json(query: str, hits: list[Hit]) -> None:
    """Prints a line of JSON: the query and its hits with the numbers that `print_hits` shows."""
    found = [
        {"cosine": hit.score, "number": hit.index + 1, "sentence": hit.sentence} for hit in hits
    ]
    print(json.dumps({"query": query, "hits": found}, ensure_ascii=False), flush=True)


def print_hits(query: str, hits: list[Hit]) -> None:
    """Prints a table: cosine, number of the sentence (from 1), text."""
    table = Table(title=Text(query), title_justify="left")
    table.add_column("cosine", justify="right", no_wrap=True)
    table.add_column("number", justify="right", no_wrap=True)
    table.add_column("sentence", overflow="fold")
    for hit in hits:
        # A sentence may look like markup.
        table.add_row(f"{hit.score:.4f}", str(hit.index + 1), Text(hit.sentence))
    rich.print(table)


def _lines_of_stdin() -> Iterator[str]:
    try:
        for line in sys.stdin:
            if line.strip():
                yield line.strip()
    except UnicodeDecodeError as error:
        raise UserError(
            f"Standard input is not {sys.stdin.encoding} text: set PYTHONIOENCODING=utf-8."
        ) from error


main = command("search", Arguments, search)


if __name__ == "__main__":
    main()
