"""`python -m jtcse_jax.search --model PATH --input FILE --query TEXT`: prints similar sentences."""

import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import rich
import tyro
from rich.table import Table
from rich.text import Text

from jtcse_jax.data.text_arguments import TextArguments
from jtcse_jax.data.text_files import STDIN
from jtcse_jax.encoding.encoder import Hit, SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.command import command
from jtcse_jax.store.ensemble import EncoderArguments


@dataclass(frozen=True, kw_only=True)
class Arguments(EncoderArguments, TextArguments):
    """Prints the sentences of a text that are nearest to queries, by the cosine of their vectors.

    Without --query, it reads queries from standard input, one per line. All sentences are kept in
    memory.
    """

    query: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text to search for; may be given several times."""
    top_k: int = 5
    """Largest number of sentences printed per query."""
    threshold: float | None = None
    """Smallest cosine printed; by default no limit."""
    backend: Literal["exact", "faiss"] = "exact"
    """exact, or faiss, which needs the package faiss-cpu."""
    json: bool = False
    """Print a JSON object per query, on one line, instead of a table."""


def search(arguments: Arguments) -> None:
    """Prints the hits of each query. Raises the errors of the readers of model and text."""
    if arguments.top_k < 1:
        raise UserError(f"--top-k {arguments.top_k}: ask for at least one sentence.")
    if arguments.input == STDIN and not arguments.query:
        raise UserError("--input -: standard input is the text; give the queries with --query.")
    source = arguments.open_sentences()
    sentences = list(source.read())
    arguments.check_numbers(source)
    encoder = SentenceEncoder.of(arguments.load_members())
    encoder.build_index(sentences, backend=arguments.backend, show_progress_bar=True)
    print_one = print_json if arguments.json else print_hits
    for query in arguments.query or _lines_of_stdin():
        print_one(query, encoder.search(query, arguments.top_k, arguments.threshold))


def print_json(query: str, hits: list[Hit]) -> None:
    """Prints a line of JSON: the query and its hits with the numbers that `print_hits` shows."""
    found = [{"cosine": hit.score, "line": hit.index + 1, "sentence": hit.sentence} for hit in hits]
    print(json.dumps({"query": query, "hits": found}, ensure_ascii=False), flush=True)


def print_hits(query: str, hits: list[Hit]) -> None:
    """Prints a table: cosine, line number of the sentence (from 1), text."""
    table = Table(title=Text(query), title_justify="left")
    table.add_column("cosine", justify="right", no_wrap=True)
    table.add_column("line", justify="right", no_wrap=True)
    table.add_column("sentence", overflow="fold")
    for hit in hits:
        # A sentence may look like markup.
        table.add_row(f"{hit.score:.4f}", str(hit.index + 1), Text(hit.sentence))
    rich.print(table)


def _lines_of_stdin() -> Iterator[str]:
    for line in sys.stdin:
        if line.strip():
            yield line.strip()


main = command("search", Arguments, search)


if __name__ == "__main__":
    main()
