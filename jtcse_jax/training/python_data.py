"""Text and scored pairs that are Python objects instead of files.

They are written to files of JSON lines, named by the hash of their content, and a run reads these
like any other file. So its config stays plain JSON, and the same objects resume it.
"""

import dataclasses
import hashlib
import json
import reprlib
import sys
import uuid
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jtcse_jax.config import DataConfig
from jtcse_jax.errors import UserError, writing
from jtcse_jax.evaluation.scored_pairs import find_columns, is_number
from jtcse_jax.user_path import user_path

if TYPE_CHECKING:
    from datasets import Dataset

    Text = Sequence[str] | Sequence[Sequence[str]] | Dataset
    ScoredPairs = Sequence[tuple[str, str, float]] | Dataset

FOLDER = "python"  # in `data.cache_dir`
DEV_COLUMNS = ("sentence1", "sentence2", "score")
KINDS = {
    "source": "a list of strings, or of tuples of one size (anchor, positive, any hard negatives), "
    "or a datasets.Dataset",
    "dev": "a list of tuples (sentence, sentence, score), or a datasets.Dataset",
}


def with_python_data(
    data: DataConfig, source: "Text | None" = None, dev: "ScoredPairs | None" = None
) -> DataConfig:
    """The config with `source`, `columns` and `dev` naming files that hold the given objects.

    The files lie in `data.cache_dir`. An object that is None changes nothing.

    Args:
      data: its `columns` name the columns of a `source` that is a `datasets.Dataset`.
      source: sentences, or tuples of one size: an anchor, its positive (or `data.positives` of
        them) and any hard negatives; or a Dataset.
      dev: tuples (sentence, sentence, score), or a Dataset with such columns, named as in a file.
    Raises:
      UserError: an object is empty, of another type, has items of several kinds, lacks a column or
        has a cell of another type; or a file cannot be written.
    """
    folder = Path(data.cache_dir) / FOLDER
    if source is not None:
        text = _checked("source", source)
        if _is_dataset(text):
            columns = _text_columns(text, data.columns)
        else:
            columns = text_columns(_row_size("source", text), data.positives)
            text = [(row,) if isinstance(row, str) else row for row in text]
        path = _write(folder, columns, _text_rows(_cells(text, columns)))
        data = dataclasses.replace(data, source=str(path), columns=columns)
    if dev is not None:
        pairs = _checked("dev", dev)
        if _is_dataset(pairs):
            columns = tuple(find_columns("dev", pairs.column_names))
        else:
            columns = DEV_COLUMNS
            _row_size("dev", pairs, len(columns))
        path = _write(folder, DEV_COLUMNS, _dev_rows(_cells(pairs, columns)))
        data = dataclasses.replace(data, dev=str(path))
    return data


def _checked(what: str, given: Any) -> Any:
    """The object; UserError if it is neither a list nor a Dataset, or is empty."""
    is_list = isinstance(given, Sequence) and not isinstance(given, str | bytes)
    if not is_list and not _is_dataset(given):
        raise UserError(
            f"{what} is of type {type(given).__name__}: give {KINDS[what]} (the name of a file "
            f"belongs into the config, data.{what})."
        )
    if not len(given):
        raise UserError(f"{what} is empty: give {KINDS[what]}.")
    return given


def _is_dataset(given: Any) -> bool:
    datasets = sys.modules.get("datasets")  # a Dataset exists only if it is imported
    return datasets is not None and isinstance(given, datasets.Dataset)


def _text_columns(dataset: "Dataset", columns: tuple[str, ...]) -> tuple[str, ...]:
    names = ", ".join(dataset.column_names)
    if not columns:
        raise UserError(
            f"source has the columns {names}: name the one with the sentences, two of pairs, or "
            "more with hard negatives, in data.columns."
        )
    for column in columns:
        if column not in dataset.column_names:
            raise UserError(f"source has no column {column!r}; its columns are {names}.")
    return columns


def text_columns(size: int, positives: int) -> tuple[str, ...]:
    """Names of columns for rows of `size` strings, of which `positives` follow the anchor."""
    if size == 1:
        return ("sentence",)
    more = range(2, size)
    names = ["positive", *(f"positive{number}" for number in more)][:positives]
    names += ["negative", *(f"negative{number}" for number in more)]
    return ("anchor", *names[: size - 1])


def _row_size(what: str, rows: Sequence[Any], size: int | None = None) -> int:
    """The number of cells of each row; UserError if they differ, or if it is not `size`.

    A string is a row of one cell, unless there is a `size`.
    """

    def count(row: Any) -> int:
        if isinstance(row, str):
            return 0 if size else 1
        return len(row) if isinstance(row, tuple | list) else 0

    sizes = list(map(count, rows))
    for number, each in enumerate(sizes):
        if each != sizes[0] or each == 0 or size not in (None, each):
            unlike = f", unlike {what}[0]" * (each != sizes[0])
            given = reprlib.repr(rows[number])
            raise UserError(f"{what}[{number}] is {given}{unlike}: give {KINDS[what]}.")
    return sizes[0]


def _cells(rows: Any, columns: Sequence[str]) -> Iterator[Sequence[Any]]:
    """The rows of a list, or the cells of a Dataset's columns row by row."""
    if not _is_dataset(rows):
        yield from rows
        return
    for block in rows.select_columns(list(columns)).with_format(None).iter(1000):
        yield from zip(*(block[column] for column in columns), strict=True)


def _text_rows(rows: Iterable[Sequence[Any]]) -> Iterator[Sequence[str | None]]:
    for number, row in enumerate(rows):
        for cell in row:
            if cell is not None:  # an empty record, skipped and counted like a blank line
                _check_text("source", number, cell)
        yield row


def _dev_rows(rows: Iterable[Sequence[Any]]) -> Iterator[Sequence[str | float]]:
    for number, (first, second, score) in enumerate(rows):
        for cell in (first, second):
            _check_text("dev", number, cell)
        if not is_number(score):
            raise UserError(f"dev[{number}]: the score {reprlib.repr(score)} is not a number.")
        yield first, second, float(score)


def _check_text(what: str, number: int, cell: Any) -> None:
    if not isinstance(cell, str):
        raise UserError(f"{what}[{number}]: {reprlib.repr(cell)} is not text.")
    try:
        cell.encode()
    except UnicodeEncodeError as error:
        raise UserError(f"{what}[{number}]: half a surrogate pair is not text.") from error


def _write(folder: Path, columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Path:
    """Writes a JSON object per row; returns the file, whose name is the hash of its content.

    A `~` at the start of `folder` stays in the name, so the config is the same for every user.
    """
    place = user_path(folder)
    unfinished = place / f".{uuid.uuid4().hex}"
    digest = hashlib.sha256()
    with writing(place):
        place.mkdir(parents=True, exist_ok=True)
        try:
            with open(unfinished, "wb") as file:
                for row in rows:
                    record = dict(zip(columns, row, strict=True))
                    line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
                    digest.update(line)
                    file.write(line)
            name = f"{digest.hexdigest()[:32]}.jsonl"
            unfinished.replace(place / name)
        finally:
            unfinished.unlink(missing_ok=True)
    return folder / name
