"""Writes a .npy file of vectors block by block, by several processes, and resumes after kills.

The parts of `runtime.output` are blocks of one file, which is renamed in the end and never copied.
"""

import io
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from jtcse_jax.encoding.progress import progress_bar
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.output import Output
from jtcse_jax.user_path import user_path

VECTORS = "vectors.npy"


class Encode(Protocol):
    """What `SentenceEncoder.encode_block` is."""

    def __call__(self, sentences: list[str], *, done: Callable[[float], None]) -> np.ndarray:
        """The vectors [n, D] of sentences; `done` is called with numbers of finished ones."""
        ...


class SentenceBlocks(Protocol):
    """What `data.blocks.Blocks` and `data.stored_texts.TextBlocks` are, and a list of blocks."""

    def __getitem__(self, number: int, /) -> list[str]:
        """The sentences of a block."""
        ...


class VectorFile:
    """[rows, width] float32 vectors that will become `output`.

    Attributes:
        folder: the folder of the unfinished file.
    """

    def __init__(self, output: Path, rows: int, width: int, block: int, settings: dict[str, Any]):
        """Opens the partial output of an earlier or another process, or begins a new one.

        Args:
          output: the .npy file to write.
          rows: number of all vectors.
          width: size of each vector.
          block: number of vectors written at once.
          settings: everything that determines the vectors, for JSON; a partial output must have
            the same settings.
        Raises:
          UserError: `output` exists, its folder cannot be written or has too little space, or the
            partial output has other settings.
        """
        self._parts = Output(output, -(-rows // block))
        self._shape, self._block = (rows, width), block
        self._header = _header(self._shape)
        self.folder = self._parts.folder
        size, free = rows * width * 4, shutil.disk_usage(output.parent).free
        if not self.folder.is_dir() and size > free:
            raise UserError(
                f"--output {output}: needs {size / 1e9:,.2f} GB, but only {free / 1e9:,.2f} GB are "
                "free there."
            )
        if not self._parts.begin(settings | {"rows": rows, "width": width, "block": block}):
            raise UserError(f"--output {output} exists already; choose a new file.")

    @property
    def rows_done(self) -> int:
        """Number of vectors on the disk, written by any process."""
        count = self._parts.num_parts
        missing = count * self._block - self._shape[0]  # from a full last block
        return self._parts.num_done() * self._block - missing * self._parts.is_done(count - 1)

    def fill(self, blocks: SentenceBlocks, encode: Encode) -> None:
        """Writes the vectors of all missing blocks, with a progress bar, and finishes the file.

        Args:
          blocks: `blocks[n]` gives the sentences of block n.
          encode: gives their vectors [n, width], as `SentenceEncoder.encode_block`.
        """
        rows = self._shape[0]
        if self.rows_done:
            print(f"{self.folder}: {self.rows_done:,} of {rows:,} are done", file=sys.stderr)
        with progress_bar(rows) as progress:
            task = progress.task_ids[0]
            for number in self.claim():
                progress.update(task, completed=self.rows_done)
                self.write(number, encode(blocks[number], done=partial(progress.advance, task)))
            progress.update(task, completed=rows)
        self.finish()

    def claim(self) -> Iterator[int]:
        """Yields the numbers of unwritten blocks, as `Output.claim` does."""
        return self._parts.claim()

    def write(self, number: int, vectors: np.ndarray) -> None:
        """Writes the vectors of a claimed block to the disk.

        Raises UserError if the disk is full.
        """
        data = np.ascontiguousarray(vectors, "<f4").data
        start = len(self._header) + number * self._block * self._shape[1] * 4
        self._write(start, data)
        self._parts.mark(number)

    def finish(self) -> None:
        """Renames the file to the output once all blocks are written; one process does it.

        Raises UserError if a file of that name has appeared meanwhile.
        """
        with self._parts.last_step() as ours:
            if ours:
                self._write(0, self._header)
                self._parts.publish(self.folder / VECTORS)

    def _write(self, start: int, data: bytes | memoryview) -> None:
        # Blocks not yet written are holes, which take no space.
        flags = os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0)
        with self._parts.writing():
            with open(os.open(self.folder / VECTORS, flags, 0o666), "r+b") as file:
                file.seek(start)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())


def kept_vectors(
    path: Path, blocks: SentenceBlocks, rows: int, width: int, block: int, encode: Encode
) -> np.ndarray:
    """The vectors [rows, width] of `blocks`, mapped from the file `path`, which is made if absent.

    Several processes share the work, and a killed one resumes. Other arguments as in `VectorFile`;
    the folder of `path` must belong to these sentences and this encoder only.
    """
    try:
        file = VectorFile(path, rows, width, block, {})
    except UserError:
        if not path.exists():  # otherwise it was completed before, or just now by another process
            raise
    else:
        file.fill(blocks, encode)
    return np.load(path, mmap_mode="r", allow_pickle=False)


def open_vectors(name: str) -> np.ndarray:
    """Maps the file of `--vectors NAME`, [n, D] floats.

    Raises UserError for a file that does not hold vectors as `encode` writes them.
    """
    try:
        vectors = np.load(user_path(name), mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"--vectors {name}: not a .npy file ({error}).") from error
    if vectors.ndim != 2 or not np.issubdtype(vectors.dtype, np.floating):
        raise UserError(f"--vectors {name}: not a file of vectors, as `encode` writes it.")
    return vectors


def _header(shape: tuple[int, int]) -> bytes:
    """The first bytes of a .npy file of vectors."""
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()
