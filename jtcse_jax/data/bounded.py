"""Opens text files with bounded memory, whatever their decompressed size.

A few kilobytes of .gz or .xz can hold gigabytes without a line end, and the header of an .xz file
determines how much memory its decoder takes.
"""

import gzip
import io
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

LONGEST_LINE = 2**20  # bytes; the longest sentence a model reads has some hundred thousand
_XZ_MEMORY = 2**28  # bytes; xz -9 needs a quarter of it
_BLOCK = 2**16  # bytes read at once


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
        return io.BufferedReader(_XzFile(path), _BLOCK)
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


class _XzFile(io.RawIOBase):
    """Like `lzma.open`, but with a bound on the decoder's memory, an option `lzma.open` lacks."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")
        self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:  # a memoryview
        data = b""
        while not data:
            if self._decoder.eof and not self._next_stream():
                return 0
            packed = self._file.read(_BLOCK) if self._decoder.needs_input else b""
            if self._decoder.needs_input and not packed:
                raise EOFError("the file is truncated")
            data = self._decoder.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _next_stream(self) -> bool:
        """Whether another stream follows, after zero bytes if any."""
        self._file.seek(-len(self._decoder.unused_data), os.SEEK_CUR)
        while (byte := self._file.read(1)) == b"\0":
            pass
        if not byte:
            return False
        self._file.seek(-1, os.SEEK_CUR)
        self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        return True
