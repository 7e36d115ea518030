"""Finds out which table a file is.

The suffix of a file names its format, and its first bytes do if the suffix does not (the copy of a
pipe has none).
"""

import codecs
import json
import lzma
import re
import zlib
from pathlib import Path

from jtcse_jax.data import text_files
from jtcse_jax.data.arrow_tables import Arrow, Parquet
from jtcse_jax.data.bounded import open_bytes
from jtcse_jax.data.table import Table
from jtcse_jax.data.text_tables import Delimited, Json, JsonLines
from jtcse_jax.errors import UserError

_HEAD = 2**16  # bytes
# What files of pairs name their two columns, in `standard` form.
PAIRS = (
    ("sentence1", "sentence2"),
    ("sentencea", "sentenceb"),
    ("sentence0", "sentence1"),
    ("sent1", "sent2"),
    ("senta", "sentb"),
    ("sent0", "sent1"),
    ("s1", "s2"),
    ("text1", "text2"),
    ("texta", "textb"),
    ("question1", "question2"),
    ("premise", "hypothesis"),
    ("anchor", "positive"),
    ("query", "positive"),
)

_FORMATS: dict[str, type[Table]] = {
    ".csv": Delimited,
    ".jsonl": JsonLines,
    ".ndjson": JsonLines,
    ".json": Json,
    ".parquet": Parquet,
    ".arrow": Arrow,
    ".feather": Arrow,
}


def find_table(path: Path, *, named: bool) -> Table | None:
    """The table in a file; None for plain text, which has no columns.

    With `named` the user has named columns, so text is a table with a header, whatever its suffix.
    Raises UserError for a damaged file.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    is_packed = text_files.is_packed(path)
    kind = _FORMATS.get("".join(suffixes[-1 - is_packed :][:1])) or _sniffed(path)
    if is_packed and kind in (Parquet, Arrow):
        raise UserError(f"{path}: this format is compressed inside; decompress the file itself")
    if kind is None and named:
        kind = Delimited
    return kind(path) if kind else None


def _sniffed(path: Path) -> type[Table] | None:
    """The format by the first bytes; None for text in lines, and for what cannot be read."""
    try:
        with open_bytes(path) as file:
            head = file.read(_HEAD)
    except (OSError, EOFError, lzma.LZMAError, zlib.error):
        return None
    if head.startswith(b"PAR1"):
        return Parquet
    if head.startswith((b"ARROW1", b"\xff\xff\xff\xff")):
        return Arrow
    line = head.removeprefix(codecs.BOM_UTF8).lstrip().partition(b"\n")[0]
    if line.startswith(b"{"):
        try:
            return JsonLines if isinstance(json.loads(line), dict) else None
        except (ValueError, RecursionError):
            return None
    return Json if re.match(rb"\[\s*\{\s*\"", head.removeprefix(codecs.BOM_UTF8).lstrip()) else None


def header_of_pairs(path: Path) -> list[str]:
    """The names in the first line of a .tsv file, if it is the header of two columns; else []."""
    _, first = next(text_files.decoded_lines(path, text_files.WHOLE), (0, ""))
    names = [name.strip() for name in first.split("\t")]
    return names if tuple(map(standard, names)) in PAIRS else []


def standard(name: str) -> str:
    """The name of a column without what writers do differently: case, `_`, `-` and spaces."""
    return re.sub(r"[\s_-]", "", name).casefold()
