"""Tables in text: CSV, tab-separated text with a header, JSON."""

import codecs
import csv
import json
import re
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jtcse_jax.data import text_files
from jtcse_jax.data.bounded import LONGEST_LINE, open_bytes
from jtcse_jax.data.table import Cells, Table
from jtcse_jax.errors import UserError

_BLOCK = 2**16  # bytes read at once
# Between the records of JSON: of an array of them, or one per line.
_BETWEEN = re.compile(r"[\s,\[\]]*")
# Cells as a CSV writer quotes them: a cell with a quote is in quotes, and its quotes are doubled.
_CELL = r'(?:"(?:[^"]+|"")*+"|[^"\t]*+)'
_QUOTED = re.compile(rf"{_CELL}(?:\t{_CELL})*+")


class Delimited(Table):
    """A table in lines, with tabs, `||`, commas or semicolons between the cells.

    Between commas and semicolons cells may be quoted, as in CSV, and then contain line breaks.
    Between tabs a quote is a character like any other, unless every line with quotes is as a CSV
    writer makes it. The first line has the names, but `records` also reads files without a header.

    Attributes:
        delimiter: what stands between the cells.
    """

    def __init__(self, path: Path):
        super().__init__(path)
        lines = text_files.decoded_lines(path, text_files.WHOLE)
        first = next((line for _, line in lines if line.strip()), "")
        if text_files.holds_pairs(path) or "\t" in first:
            self.delimiter = "\t"
        else:
            self.delimiter = "||" if "||" in first else max(",;", key=first.count)
        header = next((cells for _, cells in self.records() if cells), [])
        self.names = [name.strip() for name in header]

    def records(self) -> Iterator[tuple[int, list[str]]]:
        """The line number and the cells of each record, none for a blank line."""
        if self.delimiter in ",;":
            yield from self._csv_records()
            return
        unquote = self.delimiter == "\t" and self._is_quoted
        for number, line in text_files.decoded_lines(self.path, text_files.WHOLE):
            line = line.rstrip("\r\n")
            if not line.strip():
                yield number, []
            elif unquote and '"' in line:
                yield number, next(csv.reader([line], delimiter="\t"))
            else:
                yield number, line.split(self.delimiter)

    def rows(self, part: range, names: Sequence[str]) -> Iterator[tuple[int, Cells]]:
        columns = [self.names.index(name) for name in names]
        records = self.records()
        for _, header in records:
            if header:
                break
        for number, cells in records:
            if cells and len(cells) != len(self.names):
                raise UserError(
                    f"{self.path}:{number}: {len(cells)} columns, but the header has "
                    f"{len(self.names)}; correct or remove the line"
                )
            yield number, tuple(cells[column] for column in columns) if cells else ("",)

    def place(self, part: range, number: int) -> str:
        return f"{self.path}:{number}"

    def _csv_records(self) -> Iterator[tuple[int, list[str]]]:
        lines = text_files.decoded_lines(self.path, text_files.WHOLE)
        csv.field_size_limit(LONGEST_LINE)
        reader = csv.reader((line for _, line in lines), delimiter=self.delimiter, strict=True)
        try:
            for cells in reader:
                yield reader.line_num, cells if any(map(str.strip, cells)) else []
        except csv.Error as error:
            raise UserError(
                f"{self.path}:{reader.line_num}: not CSV ({error}); quote cells with a comma, a "
                "quote or a line break, and double the quotes in them"
            ) from error

    @cached_property
    def _is_quoted(self) -> bool:
        lines = text_files.decoded_lines(self.path, text_files.WHOLE)
        return all(_QUOTED.fullmatch(line.rstrip("\r\n")) for _, line in lines if '"' in line)


class JsonLines(Table):
    """A JSON object per line."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.names = next((list(record) for _, record in self._records(text_files.WHOLE)), [])

    def parts(self) -> list[range]:
        return text_files.parts(self.path)

    def rows(self, part: range, names: Sequence[str]) -> Iterator[tuple[int, Cells]]:
        for number, record in self._records(part, blank=dict.fromkeys(names)):
            yield number, tuple(map(record.get, names))

    def place(self, part: range, number: int) -> str:
        return text_files.place(self.path, part, number)

    def _records(
        self, part: range, blank: dict[str, Any] | None = None
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, line in text_files.decoded_lines(self.path, part):
            record = blank
            if line.strip():
                try:
                    record = json.loads(line)
                except (ValueError, RecursionError):
                    record = line
                if not isinstance(record, dict):
                    raise UserError(
                        f"{self.place(part, number)}: not a JSON object; correct or remove the line"
                    )
            if record is not None:
                yield number, record


class Json(Table):
    """An array of JSON objects, or objects one after the other."""

    def __init__(self, path: Path):
        super().__init__(path)
        self.names = next((list(record) for _, record in self._records()), [])

    def rows(self, part: range, names: Sequence[str]) -> Iterator[tuple[int, Cells]]:
        for number, record in self._records():
            yield number, tuple(map(record.get, names))

    def _records(self) -> Iterator[tuple[int, dict[str, Any]]]:
        for number, record in enumerate(self._values(), start=1):
            if not isinstance(record, dict):
                raise UserError(f"{self.path}: record {number} is not a JSON object; correct it")
            yield number, record

    def _values(self) -> Iterator[Any]:
        decoder, parser = codecs.getincrementaldecoder("utf-8-sig")(), json.JSONDecoder()
        text, lines, count, depth = "", 0, 0, 0
        with text_files.reading(self.path, lambda: lines), open_bytes(self.path) as file:
            block = b"."
            while block:
                block = file.read(_BLOCK)
                lines += block.count(b"\n")
                try:
                    text += decoder.decode(block, final=not block)
                except UnicodeDecodeError as error:
                    raise UserError(
                        f"{self.path} is not UTF-8 text after record {count}; convert it to UTF-8"
                    ) from error
                position = 0
                while True:
                    between = _BETWEEN.match(text, position)
                    assert between is not None  # it matches the empty string too
                    depth += between[0].count("[") - between[0].count("]")
                    position = between.end()
                    if position == len(text):
                        break
                    try:
                        value, position = parser.raw_decode(text, position)
                    except (ValueError, RecursionError) as error:
                        if block and len(text) - position <= LONGEST_LINE:
                            break  # the rest of the value is not read yet
                        raise self._damaged(count) from error
                    count += 1
                    yield value
                text = text[position:]
        if depth:
            raise self._damaged(count)

    def _damaged(self, records: int) -> UserError:
        return UserError(
            f"{self.path}: not JSON after record {records}, or a record longer than "
            f"{LONGEST_LINE:,} characters; give an array of objects, or one object per line"
        )
