"""Text files as sources: finds them by name, reads them in parts, hashes them."""

import glob
import hashlib
import io
import lzma
import os
import sys
import zlib
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

from jtcse_jax.data.bounded import LongLineError, open_bytes, read_line, read_lines
from jtcse_jax.errors import UserError

_PACKED = (".gz", ".xz")
_BLOCK = 2**20  # bytes read at once
_PART_BYTES = 2**25  # tokenised in seconds: a killed run loses no more than that


def find(spec: str) -> list[Path]:
    """The files of a path or a glob, in sorted order.

    Raises UserError for a folder, if no file matches, and for an empty file.
    """
    path = Path(os.path.expanduser(spec))
    if os.path.isdir(path):
        raise UserError(f"{spec} is a folder; name its files, for example {spec.rstrip('/')}/*.txt")
    # A file whose own name has brackets in it is not a glob.
    if os.path.exists(path):
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
            raise UserError(f"{path} is empty; give a file with one sentence per line")
    return paths


def holds_pairs(path: Path) -> bool:
    """Whether a file of this name has lines of pairs."""
    name = path.with_suffix("") if path.suffix in _PACKED else path
    return name.suffix == ".tsv"


def parts(path: Path) -> list[range]:
    """Equal ranges of a file's bytes; one for a compressed file, which cannot be divided."""
    if path.suffix in _PACKED:
        return [range(sys.maxsize)]
    return runs(path.stat().st_size, _PART_BYTES)


def runs(size: int, longest: int) -> list[range]:
    """`range(size)` in the fewest equal ranges of at most `longest`; one empty range for size 0."""
    count = max(1, -(-size // longest))
    bounds = [size * i // count for i in range(count + 1)]
    return [range(*pair) for pair in pairwise(bounds)]


def lines(path: Path, part: range) -> Iterator[str]:
    """The lines that begin within a part of a file."""
    for _, line in _decoded_lines(path, part):
        yield line


def pair_lines(path: Path, part: range) -> Iterator[str]:
    """The two columns of each of these lines, one by one; a blank line gives an empty string."""
    for number, line in _decoded_lines(path, part):
        columns = line.split("\t")
        if not line.strip():
            yield ""
        elif len(columns) != 2:
            raise UserError(
                f"{_place(path, part, number)}: {len(columns)} tab-separated column"
                f"{'s' * (len(columns) > 1)}, but a pair has 2; correct or remove the line"
            )
        elif not all(column.strip() for column in columns):
            place = _place(path, part, number)
            raise UserError(f"{place}: an empty column; correct or remove the line")
        else:
            yield from columns


def identity(paths: list[Path]) -> str:
    """sha256 (hex) of each file."""
    digests = []
    for path in paths:
        try:
            with open(path, "rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    return " ".join(digests)


def _decoded_lines(path: Path, part: range) -> Iterator[tuple[int, str]]:
    """(number from 1, line) of the lines that begin within a part of the file.

    Lines end only at a newline byte, not at Unicode's other line separators.
    """
    number = 0
    try:
        with open_bytes(path) as file:
            position = _seek_line(file, part.start)
            for number, raw in enumerate(read_lines(file), start=1):
                if position >= part.stop:
                    break
                yield number, raw.decode("utf-8" if position else "utf-8-sig")
                position += len(raw)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{_place(path, part, number)}: byte {error.start + 1} of the line is not UTF-8 text; "
            "convert the file to UTF-8 (iconv -t utf-8)"
        ) from error
    except LongLineError as error:
        raise UserError(f"{_place(path, part, number + 1)}: the line is {error}") from error
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        after = _lines_before(path, part.start) + number
        raise UserError(f"{path}: cannot be read after line {after}: {error}") from error


def _seek_line(file: io.BufferedIOBase, start: int) -> int:
    """Moves to the first line that begins at byte `start` or after it; returns its position."""
    if start == 0:
        return 0
    file.seek(start - 1)
    return start - 1 + len(read_line(file))


def _place(path: Path, part: range, number: int) -> str:
    return f"{path}:{_lines_before(path, part.start) + number}"


def _lines_before(path: Path, start: int) -> int:
    """Lines that begin before a byte of the file; counted only for an error message."""
    count, left = min(start, 1), start - 1
    with open(path, "rb") as file:
        while left > 0 and (block := file.read(min(left, _BLOCK))):
            count, left = count + block.count(b"\n"), left - len(block)
    return count
