"""Sources of sentences: text files, tables, TFDS, the hub, Python's own documentation.

| spec | source |
|---|---|
| `PATH` or a glob | one sentence per line, UTF-8; plain, `.gz` or `.xz`; files in sorted order |
| a name ending in `.tsv` (before `.gz`, `.xz`) | two columns: two views of one sentence |
| files with `columns` | a table: `.csv`, `.tsv`, `.jsonl`, `.json`, `.parquet`, `.arrow`, or text \
with a header; one column of sentences, two of pairs, or more: anchor, positives, hard negatives |
| `tfds:NAME:SPLIT:FIELD` | a prepared TFDS data set in ArrayRecord files |
| `hub:NAME:SPLIT:FIELD` | a Hugging Face data set, `NAME:CONFIG` if it has several; or the path \
of a folder or `.arrow` file that `datasets` wrote; `FIELD,FIELD` gives pairs, and further fields \
are hard negatives |
| `stdlib` | the English documentation in every Python installation |

A PATH may be a pipe, which is copied to a temporary file, or `-`, standard input. A SPLIT may be a
slice, as in `tfds:wiki_dialog:train[:1000]:passage`.

A source is divided into shards that several processes can read independently: runs of records of
TFDS and the hub, runs of lines of plain text and `.jsonl`, runs of row groups of Parquet. Any other
file is one shard. An empty record of a table or a data set is skipped and counted like a blank
line, and so is a pair with an empty sentence.
"""

import hashlib
import importlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

from jtcse_jax.data import python_docs, text_files
from jtcse_jax.data.table import Cells, Table
from jtcse_jax.data.tables import find_table, header_of_pairs
from jtcse_jax.data.text_files import runs
from jtcse_jax.errors import UserError
from jtcse_jax.user_path import user_path

_NAMED = re.compile(r"(?P<name>.+):(?P<split>[^:\[\]]+(\[[^\[\]]*\])?):(?P<field>[^:]+)")

_HALF_PAIR = re.compile("[\ud800-\udfff]")  # JSON can escape one; it has no UTF-8

_TFDS_COMMAND = "pip install tensorflow-datasets importlib_resources"

_SHARD_RECORDS = 2**18  # tokenised in seconds: a killed run loses no more than that


@dataclass
class Source:
    """Sentences to train on.

    Attributes:
        spec: what the user wrote.
        views: 1, or 2 if the sentences come as pairs, or more with hard negatives.
        columns: the columns of the tables that the user named.
        blank: blank lines or records skipped in the latest `read` or `read_shard`.
    """

    spec: str
    views: int
    _shards: Sequence[Callable[[], Iterable[str]]]
    _identity: Callable[[], str]
    columns: tuple[str, ...] = ()
    blank: int = 0
    _fingerprint: str | None = None

    @property
    def num_shards(self) -> int:
        """The number of shards: a property of the text, not of the reading process."""
        return len(self._shards)

    def read(self) -> Iterator[str]:
        """The sentences in order, stripped, none blank; the sentences of a pair, one by one.

        Raises:
            UserError: the text has an error (the message names file and line) or no sentence.
        """
        self.blank = 0
        empty = True
        for sentence in chain.from_iterable(map(self._read, self._shards)):
            empty = False
            yield sentence
        if empty:
            raise self.without_text()

    def read_shard(self, number: int) -> Iterator[str]:
        """Like `read`, for one shard, which may have no sentence."""
        self.blank = 0
        yield from self._read(self._shards[number])

    def without_text(self) -> UserError:
        """The error for a source without sentences."""
        return UserError(f"{self.spec} holds no sentence; give a source with text")

    def fingerprint(self) -> str:
        """sha256 (hex) of the content, the same under any file name; computed once."""
        if self._fingerprint is None:
            whole = f"{self.views} {self._identity()}"
            self._fingerprint = hashlib.sha256(whole.encode()).hexdigest()
        return self._fingerprint

    def _read(self, shard: Callable[[], Iterable[str]]) -> Iterator[str]:
        for line in shard():
            sentence = line.strip()
            if sentence:
                yield sentence
            else:
                self.blank += 1


def open_source(spec: str, columns: Sequence[str] = ()) -> Source:
    """The source that a spec names (see the module's table), tables by `columns`.

    Raises:
        UserError: a file or data set does not exist, a spec has missing parts, a table has no such
            column or none was named, a data set lacks the field or random access, or a package is
            not installed.
    """
    scheme = spec.partition(":")[0]
    if columns and (spec == "stdlib" or scheme in ("tfds", "hub")):
        raise UserError(f"{spec} is not a table file: leave out the columns {', '.join(columns)}")
    if spec == "stdlib":
        return Source(spec, 1, [python_docs.sentences], python_docs.identity)
    if scheme == "tfds":
        return _open_tfds(spec)
    if scheme == "hub":
        return _open_hub(spec)
    paths = text_files.find(spec)
    tables = [find_table(path, named=bool(columns)) for path in paths]
    if any(tables):
        return _open_tables(spec, [table for table in tables if table], tuple(columns), paths)
    return _open_text(spec, paths)


def _open_tables(
    spec: str, tables: Sequence[Table], columns: tuple[str, ...], paths: Sequence[Path]
) -> Source:
    if not columns:
        table = tables[0]
        raise UserError(
            f"{table.path} is a table with the columns {', '.join(table.names)}: name the one of "
            "the sentences, or those of anchor and positive for pairs (--columns; in training "
            "--data.columns, also of hard negatives)"
        )
    for table in tables:
        table.check(columns)
    shards = [
        partial(_table_sentences, table, part, columns)
        for table in tables
        for part in table.parts()
    ]

    def identity() -> str:
        return f"{text_files.identity(paths)} {json.dumps(columns)}"

    return Source(spec, len(columns), shards, identity, columns)


def _table_sentences(table: Table, part: range, columns: Sequence[str]) -> Iterator[str]:
    for number, cells in table.rows(part, columns):
        try:
            yield from _sentences(cells)
        except ValueError as error:
            raise UserError(f"{table.place(part, number)}: {error}") from error


def _sentences(cells: Cells) -> Sequence[str]:
    """The sentences of a record; one empty string if any of them is empty.

    Raises ValueError for a cell that is not text.
    """
    for cell in cells:
        if cell is None:
            return ("",)
        if not isinstance(cell, str):
            raise ValueError(f"{cell!r:.50} is not text; name a column of text")
        if not cell.isascii() and _HALF_PAIR.search(cell):
            raise ValueError("half a surrogate pair is not text; correct it")
        if not cell or cell.isspace():
            return ("",)
    return cells


def _open_text(spec: str, paths: Sequence[Path]) -> Source:
    pairs = {text_files.holds_pairs(path) for path in paths}
    if len(pairs) == 2:
        raise UserError(f"{spec} matches both .tsv files of pairs and text files; give one kind")
    is_pairs = pairs.pop()
    if is_pairs:
        for path in paths:
            if header := header_of_pairs(path):
                raise UserError(
                    f"{path}:1 is a header: name its columns (--columns {' '.join(header)}; in "
                    "training --data.columns), or remove the line"
                )
    lines = text_files.pair_lines if is_pairs else text_files.lines
    shards = [partial(lines, path, part) for path in paths for part in text_files.parts(path)]
    return Source(spec, 2 if is_pairs else 1, shards, partial(text_files.identity, paths))


def _open_tfds(spec: str) -> Source:
    name, split, field = _split_spec(spec)
    tfds = _import("tensorflow_datasets", spec, _TFDS_COMMAND)
    array_record = tfds.core.FileFormat.ARRAY_RECORD
    try:
        builder = tfds.builder(name)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{spec}: {_first_line(error)} If the data set is not in TFDS's own folder, set "
            "TFDS_DATA_DIR to its folder"
        ) from error
    info = builder.info
    if not info.splits:
        raise UserError(
            f"{spec}: the data set is not prepared in {builder.data_dir}; set TFDS_DATA_DIR, or "
            f"prepare it: tfds build {name} --file_format=array_record"
        )
    # Parquet also has random access, but TFDS silently writes it incompletely.
    if array_record not in info.available_file_formats():
        raise UserError(
            f"{spec}: the data set is stored as {info.file_format.value}; convert it: python -m "
            f"tensorflow_datasets.scripts.convert_format --dataset_dir={builder.data_dir} "
            "--out_file_format=array_record"
        )
    _check_field(spec, field, info.features)
    try:
        records = builder.as_data_source(split, file_format=array_record)
    except (ValueError, OSError) as error:
        raise UserError(f"{spec}: {_first_line(error)}") from error

    def lines(part: range) -> Iterator[str]:
        for number in part:
            text = records[number][field]
            try:
                yield text.decode("utf-8")
            except AttributeError as error:
                raise UserError(f"{spec}: {field} is not text; name a text field") from error
            except UnicodeDecodeError as error:
                raise UserError(f"{spec}: record {number} is not UTF-8 text") from error

    stored = [[key, part.num_examples, part.num_bytes] for key, part in info.splits.items()]
    identity = [info.full_name, stored, len(records), split, field]
    shards = [partial(lines, part) for part in runs(len(records), _SHARD_RECORDS)]
    return Source(spec, 1, shards, partial(json.dumps, identity))


def _open_hub(spec: str) -> Source:
    name, split, field = _split_spec(spec)
    datasets = _import("datasets", spec, "pip install datasets")
    try:
        dataset = _load_dataset(datasets, name, split)
    except Exception as error:  # the package raises any error of its readers and the network
        raise UserError(f"{spec}: {_first_line(error)}") from error
    columns = field.split(",")
    for column in columns:
        _check_field(spec, column, dataset.column_names)

    def lines(part: range) -> Iterator[str]:
        records = dataset.select(part)
        rows = zip(*(records[name] for name in columns), strict=True)
        for number, cells in zip(part, rows, strict=True):
            try:
                yield from _sentences(cells)
            except ValueError as error:
                raise UserError(f"{spec}: record {number}: {error}") from error

    identity = [name, split, field, len(dataset), dataset._fingerprint]
    shards = [partial(lines, part) for part in runs(len(dataset), _SHARD_RECORDS)]
    return Source(spec, len(columns), shards, partial(json.dumps, identity))


def _load_dataset(datasets: ModuleType, name: str, split: str) -> Any:
    """A split of a data set of the hub, or of what `datasets` saved to disk."""
    path = user_path(name)
    if path.is_file():
        saved = datasets.Dataset.from_file(str(path))
    elif (path / "dataset_dict.json").is_file() or (path / "state.json").is_file():
        saved = datasets.load_from_disk(str(path))
    else:
        return datasets.load_dataset(*name.split(":"), split=split)
    # A set saved without splits is its only split, whatever the name.
    part = split.partition("[")[0]
    splits = saved if isinstance(saved, dict) else {part: saved}
    if part not in splits:
        raise UserError(f"no split {part}; it has {', '.join(splits)}")
    instruction = datasets.ReadInstruction.from_spec(split)
    (rows,) = instruction.to_absolute({part: len(splits[part])})
    return splits[part].select(range(len(splits[part]))[rows.from_ : rows.to])


def _split_spec(spec: str) -> tuple[str, str, str]:
    """NAME, SPLIT and FIELD; the name may have colons and the split a slice in brackets."""
    scheme, rest = spec.split(":", 1)
    parts = _NAMED.fullmatch(rest)
    if not parts:
        raise UserError(f"{spec} has missing parts; write {scheme}:NAME:SPLIT:FIELD")
    return parts["name"], parts["split"], parts["field"]


def _import(package: str, spec: str, command: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        raise UserError(f"{spec} needs the package {error.name or package}: {command}") from error


def _check_field(spec: str, field: str, fields: Iterable[str]) -> None:
    if field not in fields:
        raise UserError(f"{spec}: there is no field {field}; it has {', '.join(sorted(fields))}")


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
