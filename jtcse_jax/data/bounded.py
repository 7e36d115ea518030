"""Text files opened within a bound of memory, whatever they unpack to.

A few kilobytes of .gz or .xz can hold gigabytes without a line's end, and the header of an .xz file
says how much memory its reader takes.
"""

import gzip
import io
import lzma
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

LONGEST_LINE = 2**20  # bytes; the longest sentence of a model is some hundred thousand
_XZ_MEMORY = 2**28  # bytes; xz -9 needs a quarter of it
_BLOCK = 2**16  # bytes read at once


class LongLineError(ValueError):
    """A line is longer than `LONGEST_LINE`."""

    def __init__(self) -> None:
        super().__init__(
            f"is longer than {LONGEST_LINE:,} bytes; put each sentence on its own line"
        )


def open_bytes(path: Path) -> BinaryIO:
    """The bytes of a file; of a .gz or .xz file those that are packed in it."""
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".xz":
        return io.BufferedReader(_XzFile(path), _BLOCK)
    return open(path, "rb")


def read_line(file: BinaryIO) -> bytes:
    """The next line with its end, b"" after the last. Raises LongLineError."""
    line = file.readline(LONGEST_LINE + 1)
    if len(line) > LONGEST_LINE:
        raise LongLineError
    return line


def read_lines(file: BinaryIO) -> Iterator[bytes]:
    """The lines that are left, each with its end. Raises LongLineError."""
    while line := read_line(file):
        yield line


class _XzFile(io.RawIOBase):
    """What `lzma.open` reads, but for a bound on the decoder's memory, which it does not take."""

    def __init__(self, path: Path) -> None:
        self._file = open(path, "rb")
        self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:
        data = b""
        while not data:
            if self._decoder.eof and not self._next_stream():
                return 0
            packed = self._file.read(_BLOCK) if self._decoder.needs_input else b""
            if self._decoder.needs_input and not packed:
                raise EOFError("it is cut short")
            data = self._decoder.decompress(packed, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()

    def _next_stream(self) -> bool:
        """Whether another stream follows; there may be zeros between them."""
        self._file.seek(-len(self._decoder.unused_data), os.SEEK_CUR)
        while (byte := self._file.read(1)) == b"\0":
            pass
        if not byte:
            return False
        self._file.seek(-1, os.SEEK_CUR)
        self._decoder = lzma.LZMADecompressor(memlimit=_XZ_MEMORY)
        return True
