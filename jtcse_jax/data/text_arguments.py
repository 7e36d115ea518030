"""The arguments that name a text, the same for every command that reads one."""

from dataclasses import dataclass
from typing import Annotated

import tyro

from jtcse_jax.data.sources import Source, open_source
from jtcse_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TextArguments:
    """A text: files, tables, data sets."""

    input: Annotated[str, tyro.conf.arg(aliases=("--source",))]
    """The text, one sentence per line: a file or glob (plain, .gz or .xz), a table (name its
    columns), tfds:NAME:SPLIT:FIELD, hub:NAME:SPLIT:FIELD, stdlib, or - for standard input."""
    columns: tuple[str, ...] = ()
    """Column of a table (.csv, .tsv, .jsonl, .json, .parquet, .arrow) that holds the sentences; two
    where pairs are allowed."""

    def open_sentences(self) -> Source:
        """The text. Raises UserError if it holds pairs, and the errors of `open_source`."""
        source = open_source(self.input, self.columns)
        if source.views > 1:
            raise UserError(
                f"--input {self.input} has two sentences a line; give one a line, or one column."
            )
        return source

    def check_numbers(self, source: Source) -> None:
        """Raises UserError if sentence n of the text just read is not its line or record n."""
        if source.blank:
            raise UserError(
                f"--input {self.input} has blank lines or empty records ({source.blank}), so that "
                "the numbers of sentences would not be those of lines: remove them (of plain text: "
                "grep '[^[:space:]]' FILE > NEW)."
            )
