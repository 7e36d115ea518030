"""Text files as sources: finds them by name, reads them in parts, hashes them."""

import codecs
import glob
import hashlib
import io
import lzma
import os
import shutil
import stat
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from jtcse_jax.data.bounded import LongLineError, open_bytes, read_line, read_lines
from jtcse_jax.errors import UserError

STDIN = "-"
WHOLE = range(sys.maxsize)  # as a part: all bytes of a file

_PACKED = (".gz", ".xz")
_BLOCK = 2**20  # bytes read at once
_PART_BYTES = 2**25  # tokenised in seconds: a killed run loses no more than that
# The first bytes of formats that are no text, for an error message.
_BINARY = {
    b"PAR1": "a Parquet file (name it .parquet)",
    b"ARROW1": "an Arrow file (name it .arrow)",
    b"\x1f\x8b": "compressed by gzip (name it .gz)",
    b"\xfd7zXZ": "compressed by xz (name it .xz)",
    b"BZh": "compressed by bzip2 (decompress it)",
    b"\x28\xb5\x2f\xfd": "compressed by zstd (decompress it)",
    b"PK\x03\x04": "a zip file or an office document (take the text out of it)",
    b"%PDF": "a PDF document (take the text out of it)",
    codecs.BOM_UTF16_LE: "UTF-16 text (convert it: iconv -f utf-16 -t utf-8)",
    codecs.BOM_UTF16_BE: "UTF-16 text (convert it: iconv -f utf-16 -t utf-8)",
}

# Copies of pipes, which can be read only once, by device and inode. They are removed at exit.
_copies: dict[tuple[int, int], tuple[Path, tempfile.TemporaryDirectory]] = {}


def find(spec: str) -> list[Path]:
    """The files of a path or a glob, in sorted order; a temporary copy of a pipe.

    `-` is standard input. Raises UserError for a folder, if no file matches, and for an empty file.
    """
    path = Path("/dev/stdin" if spec == STDIN else os.path.expanduser(spec))
    if os.path.isdir(path):
        raise UserError(f"{spec} is a folder; {_inside(path, spec.rstrip('/'))}")
    # A file whose own name has brackets in it is not a glob.
    if os.path.exists(path):
        paths = [local_copy(path)]
    else:
        matches = sorted(glob.glob(str(path), recursive=True))
        paths = [Path(match) for match in matches if os.path.isfile(match)]
    if not paths:
        problem = "no file matches" if glob.has_magic(spec) else "no such file"
        raise UserError(f"{spec}: {problem}; give a text file, tfds:..., hub:... or stdlib")
    for found in paths:
        if found.stat().st_size == 0:
            raise UserError(f"{path} is empty; give a file with one sentence per line")
    return paths


def local_copy(path: Path) -> Path:
    """A file's own path, or a temporary copy of what a pipe or a terminal gives.

    A process copies a pipe once, so it may be opened again. Raises UserError if that fails.
    """
    status = path.stat()
    if stat.S_ISREG(status.st_mode):
        return path
    key = status.st_dev, status.st_ino
    if key not in _copies:
        folder = tempfile.TemporaryDirectory(prefix="jtcse_jax.", ignore_cleanup_errors=True)
        copy = Path(folder.name) / path.name
        try:
            with open(path, "rb") as pipe, open(copy, "wb") as file:
                shutil.copyfileobj(pipe, file, _BLOCK)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be copied to {folder.name} ({error.strerror}); write the text to "
                "a file and give its name"
            ) from error
        _copies[key] = copy, folder
    return _copies[key][0]


def is_packed(path: Path) -> bool:
    """Whether a file of this name is compressed."""
    return path.suffix.lower() in _PACKED


def holds_pairs(path: Path) -> bool:
    """Whether a file of this name has lines of pairs."""
    name = path.with_suffix("") if is_packed(path) else path
    return name.suffix.lower() == ".tsv"


def parts(path: Path) -> list[range]:
    """Equal ranges of a file's bytes; one for a compressed file, which cannot be divided."""
    return [WHOLE] if is_packed(path) else runs(path.stat().st_size, _PART_BYTES)


def runs(size: int, longest: int) -> list[range]:
    """`range(size)` in the fewest equal ranges of at most `longest`; one empty range for size 0."""
    count = max(1, -(-size // longest))
    bounds = [size * i // count for i in range(count + 1)]
    return [range(*pair) for pair in pairwise(bounds)]


def lines(path: Path, part: range) -> Iterator[str]:
    """The lines that begin within a part of a file."""
    for _, line in decoded_lines(path, part):
        yield line


def pair_lines(path: Path, part: range) -> Iterator[str]:
    """The two columns of each of these lines, one by one; a blank line gives an empty string."""
    for number, line in decoded_lines(path, part):
        columns = line.split("\t")
        if not line.strip():
            yield ""
        elif len(columns) != 2:
            raise UserError(
                f"{place(path, part, number)}: {len(columns)} tab-separated column"
                f"{'s' * (len(columns) > 1)}, but a pair has 2; correct or remove the "
                "line, or name the columns of a header (--columns; in training --data.columns)"
            )
        elif not all(column.strip() for column in columns):
            raise UserError(
                f"{place(path, part, number)}: an empty column; correct or remove the line"
            )
        else:
            yield from columns


def identity(paths: Sequence[Path]) -> str:
    """sha256 (hex) of each file."""
    digests = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return " ".join(digests)


def decoded_lines(path: Path, part: range) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of the lines that begin within a part of the file.

    Lines end only at a newline byte, not at Unicode's other line separators.
    """
    number = 0
    with reading(path, lambda: _lines_before(path, part.start) + number):
        with open_bytes(path) as file:
            position = _seek_line(file, part.start)
            for number, raw in enumerate(read_lines(file), start=1):
                if position >= part.stop:
                    break
                yield number, raw.decode("utf-8" if position else "utf-8-sig")
                position += len(raw)


@contextmanager
def reading(path: Path, line: Callable[[], int]) -> Iterator[None]:
    """Turns errors of reading into UserError; `line` gives the number of the last line read."""
    try:
        yield
    except UnicodeDecodeError as error:
        if binary := _binary_format(path):
            raise UserError(f"{path} is not text: it is {binary}") from error
        raise UserError(
            f"{path}:{line()}: byte {error.start + 1} of the line is not UTF-8 text; "
            "convert the file to UTF-8 (iconv -f ITS_ENCODING -t utf-8)"
        ) from error
    except LongLineError as error:
        raise UserError(f"{path}:{line() + 1}: the line is {error}") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read after line {line()}: {error}") from error


def place(path: Path, part: range, number: int) -> str:
    """FILE:LINE of a line of a part."""
    return f"{path}:{_lines_before(path, part.start) + number}"


def _seek_line(file: io.BufferedIOBase, start: int) -> int:
    """Moves to the first line that begins at byte `start` or after it; returns its position."""
    if start == 0:
        return 0
    file.seek(start - 1)
    return start - 1 + len(read_line(file))


def _lines_before(path: Path, start: int) -> int:
    """Lines that begin before a byte of the file; counted only for an error message."""
    count, left = min(start, 1), start - 1
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, _BLOCK))):
            count, left = count + block.count(b"\n"), left - len(block)
    return count


def _binary_format(path: Path) -> str | None:
    if is_packed(path):
        return None
    with open(path, "rb") as file:
        head = file.read(8)
    return next((name for start, name in _BINARY.items() if head.startswith(start)), None)


def _inside(folder: Path, name: str) -> str:
    """What to give instead of a folder."""
    if any((folder / file).is_file() for file in ("dataset_dict.json", "dataset_info.json")):
        return f"datasets saved it, so give hub:{name}:train:FIELD"
    return f"name its files, for example {name}/*.txt"
