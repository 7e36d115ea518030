"""Where the sentences come from: text files, files of pairs, TFDS, the hub, Python itself.

| spec | source |
|---|---|
| `PATH` or a glob | one sentence a line, UTF-8; plain, `.gz` or `.xz`; files in sorted order |
| a name ending in `.tsv` (before `.gz`, `.xz`) | two columns: two views of one sentence |
| `tfds:NAME:SPLIT:FIELD` | a prepared TFDS data set in ArrayRecord files |
| `hub:NAME:SPLIT:FIELD` | a Hugging Face data set; `NAME:CONFIG` where it has several |
| `stdlib` | the English documentation that every Python carries |

A SPLIT may be a slice, as in `tfds:wiki_dialog:train[:1000]:passage`.
"""

import glob
import gzip
import hashlib
import importlib
import json
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import BinaryIO

from jtcse_jax.data import python_docs
from jtcse_jax.errors import UserError

_NAMED = re.compile(r"(?P<name>.+):(?P<split>[^:\[\]]+(\[[^\[\]]*\])?):(?P<field>[^:]+)")

_TFDS_COMMAND = "pip install tensorflow-datasets importlib_resources"


@dataclass
class Source:
    """Sentences to train on.

    Attributes:
        spec: what the user wrote.
        views: 1, or 2 where the sentences come as pairs.
        blank: blank lines skipped, counted by the latest `read`.
    """

    spec: str
    views: int
    _lines: Callable[[], Iterable[str]]
    _identity: Callable[[], str]
    blank: int = 0

    def read(self) -> Iterator[str]:
        """The sentences in order, stripped, none blank; a pair gives its two, one by one.

        Raises:
            UserError: the text has an error (file and line are named) or no sentence at all.
        """
        self.blank = 0
        empty = True
        for line in self._lines():
            sentence = line.strip()
            if sentence:
                empty = False
                yield sentence
            else:
                self.blank += 1
        if empty:
            raise UserError(f"{self.spec} holds no sentence; give a source with text")

    def fingerprint(self) -> str:
        """sha256 (hex) of the content, equal for equal content under another name."""
        return hashlib.sha256(f"{self.views} {self._identity()}".encode()).hexdigest()


def open_source(spec: str) -> Source:
    """The source that a spec names (see the module's table).

    Raises:
        UserError: a file or data set that is not there, a spec with missing parts, a data set
            that has no such field or no random access, a package that is not installed.
    """
    if spec == "stdlib":
        return Source(spec, 1, python_docs.sentences, python_docs.identity)
    if spec.startswith("tfds:"):
        return _open_tfds(spec)
    if spec.startswith("hub:"):
        return _open_hub(spec)
    return _open_files(spec)


def _open_files(spec: str) -> Source:
    paths = _find_files(spec)
    pairs = {_is_tsv(path) for path in paths}
    if len(pairs) == 2:
        raise UserError(f"{spec} matches both .tsv files of pairs and text files; give one kind")
    is_pairs = pairs.pop()
    lines = partial(_pair_lines if is_pairs else _text_lines, paths)
    return Source(spec, 2 if is_pairs else 1, lines, partial(_hash_files, paths))


def _find_files(spec: str) -> list[Path]:
    path = Path(spec).expanduser()
    if path.is_dir():
        raise UserError(f"{spec} is a folder; name its files, for example {spec.rstrip('/')}/*.txt")
    # A file whose own name has brackets in it is no glob.
    if path.exists():
        paths = [path]
    else:
        matches = sorted(glob.glob(str(path), recursive=True))
        paths = [Path(match) for match in matches if os.path.isfile(match)]
    if not paths:
        is_glob = glob.has_magic(spec)
        problem = "no file matches" if is_glob else "there is no file"
        raise UserError(f"{problem} {spec}; give a text file, tfds:..., hub:... or stdlib")
    for path in paths:
        if path.stat().st_size == 0:
            raise UserError(f"{path} is empty; give a file with one sentence a line")
    return paths


def _is_tsv(path: Path) -> bool:
    name = path.with_suffix("") if path.suffix in (".gz", ".xz") else path
    return name.suffix == ".tsv"


def _text_lines(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        for _, line in _decoded_lines(path):
            yield line


def _pair_lines(paths: list[Path]) -> Iterator[str]:
    for path in paths:
        for number, line in _decoded_lines(path):
            columns = line.split("\t")
            if not line.strip():
                yield ""
            elif len(columns) != 2:
                raise UserError(
                    f"{path}:{number}: {len(columns)} tab-separated column"
                    f"{'s' * (len(columns) > 1)} where a pair has 2; mend or remove the line"
                )
            elif not all(column.strip() for column in columns):
                raise UserError(f"{path}:{number}: an empty column; mend or remove the line")
            else:
                yield from columns


def _decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number from 1, line). Lines end at a newline byte, whatever else Unicode allows."""
    number = 0
    try:
        with _open_bytes(path) as file:
            for number, raw in enumerate(file, start=1):
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number}: byte {error.start + 1} of the line is not UTF-8 text; convert the "
            "file to UTF-8 (iconv -t utf-8)"
        ) from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read after line {number}: {error}") from error


def _open_bytes(path: Path) -> BinaryIO:
    opener = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix, open)
    return opener(path, "rb")


def _hash_files(paths: list[Path]) -> str:
    digests = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return " ".join(digests)


def _open_tfds(spec: str) -> Source:
    name, split, field = _split_spec(spec)
    tfds = _import("tensorflow_datasets", spec, _TFDS_COMMAND)
    array_record = tfds.core.FileFormat.ARRAY_RECORD
    try:
        builder = tfds.builder(name)
    except (ValueError, OSError) as error:
        raise UserError(
            f"{spec}: {_first_line(error)} If it lies in another folder than TFDS's own, set "
            "TFDS_DATA_DIR to it"
        ) from error
    info = builder.info
    if not info.splits:
        raise UserError(
            f"{spec}: the data set is not prepared in {builder.data_dir}; set TFDS_DATA_DIR, or "
            f"prepare it: tfds build {name} --file_format=array_record"
        )
    # Parquet has random access too, but TFDS writes it incompletely, without a word.
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

    def lines() -> Iterator[str]:
        for number, record in enumerate(records):
            text = record[field]
            try:
                yield text.decode("utf-8")
            except AttributeError as error:
                raise UserError(f"{spec}: {field} is not text; name a text field") from error
            except UnicodeDecodeError as error:
                raise UserError(f"{spec}: record {number} is not UTF-8 text") from error

    stored = [[key, part.num_examples, part.num_bytes] for key, part in info.splits.items()]
    identity = [info.full_name, stored, len(records), split, field]
    return Source(spec, 1, lines, partial(json.dumps, identity))


def _open_hub(spec: str) -> Source:
    name, split, field = _split_spec(spec)
    datasets = _import("datasets", spec, "pip install datasets")
    try:
        dataset = datasets.load_dataset(*name.split(":"), split=split)
    except Exception as error:  # the package raises whatever its readers and the network raise
        raise UserError(f"{spec}: {_first_line(error)}") from error
    _check_field(spec, field, dataset.column_names)

    def lines() -> Iterator[str]:
        for number, text in enumerate(dataset[field]):
            if not isinstance(text, str):
                raise UserError(f"{spec}: {field} of record {number} is not text")
            yield text

    identity = [name, split, field, len(dataset), dataset._fingerprint]
    return Source(spec, 1, lines, partial(json.dumps, identity))


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
