"""Reads lines with bounded memory: a few kilobytes of .gz can hold gigabytes without a line end."""

import gzip
import io
import lzma
from collections.abc import Iterator
from pathlib import Path

LONGEST_LINE = 2**20  # bytes; the longest sentence a model reads has some hundred thousand


class LongLineError(ValueError):
    """A line is longer than `LONGEST_LINE`."""

    def __init__(self) -> None:
        super().__init__(
            f"is longer than {LONGEST_LINE:,} bytes; put each sentence on its own line"
        )


def open_bytes(path: Path) -> io.BufferedIOBase:
    """The bytes of a file, decompressed if it is a .gz or .xz file."""
    if path.suffix.lower() == ".gz":
        return gzip.open(path, "rb")
    if path.suffix.lower() == ".xz":
        return lzma.open(path, "rb")
    return open(path, "rb")


def read_line(file: io.BufferedIOBase) -> bytes:
    """The next line with its line end; b"" at the end of the file. Raises LongLineError."""
    line = file.readline(LONGEST_LINE + 1)
    if len(line) > LONGEST_LINE:
        raise LongLineError
    return line


def read_lines(file: io.BufferedIOBase) -> Iterator[bytes]:
    """The remaining lines, each with its line end. Raises LongLineError."""
    while line := read_line(file):
        yield line
