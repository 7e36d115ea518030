"""Writes a .npy file of vectors block by block, by several processes, and resumes after kills.

Until it is complete the file is in a folder beside the output, `NAME.partial/`. The folder has the
vectors, a JSON with the conditions of the vectors, and one byte per block, which is 1 once the
block is on the disk. A process claims a block by locking its byte. The system releases the lock
when the process ends, however it ends; another process then takes the block. Nothing else is
shared, so the same command may be started at any time, any number of times, with the same result.
"""

import errno
import io
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from jtcse_jax.errors import UserError
from jtcse_jax.runtime.locks import lock_byte, unlock_byte

VECTORS, SETTINGS, DONE = "vectors.npy", "settings.json", "done"


class VectorFile:
    """[rows, width] float32 vectors that will become `output`. Use it in a `with` statement."""

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
        check_output(output)
        self.output = output
        self.partial = output.with_name(f"{output.name}.partial")
        self.rows, self.width, self.block = rows, width, block
        self.num_blocks = -(-rows // block)
        settings = settings | {"rows": rows, "width": width, "block": block}
        if not self.partial.is_dir():
            self._begin(settings)
            if output.exists():  # another process finished it since the first check
                with self._disk_errors():
                    self._remove_folder()
                check_output(output)
        try:
            self._check_settings(settings)
            with self._disk_errors():
                self._vectors = open(self.partial / VECTORS, "r+b", buffering=0)
                self._done = open(self.partial / DONE, "r+b", buffering=0)
        except UserError:
            check_output(output)  # another process may have just finished it; it is not damaged
            raise
        try:
            self._header = self._check_files()
        except UserError:
            self.__exit__()
            raise

    def __enter__(self) -> "VectorFile":
        return self

    def __exit__(self, *_) -> None:
        self._vectors.close()
        self._done.close()

    @property
    def rows_done(self) -> int:
        """Number of vectors on the disk, written by any process."""
        done = np.frombuffer(os.pread(self._done.fileno(), self.num_blocks, 0), np.uint8)
        sizes = np.full(self.num_blocks, self.block)
        sizes[-1] = self.rows - self.block * (self.num_blocks - 1)
        return int(sizes[done == 1].sum())

    def claim(self, *, wait: bool) -> Iterator[int]:
        """Yields the numbers, ascending, of unwritten blocks; each is ours until the next one.

        Blocks on which another process works are skipped. With `wait` it waits for them, and yields
        those that the other process left unwritten.
        """
        for number in range(self.num_blocks):
            if not self._is_done(number) and self._lock(number, wait):
                if not self._is_done(number):
                    yield number
                unlock_byte(self._done, number)

    def write(self, number: int, vectors: np.ndarray) -> None:
        """Writes the vectors of a claimed block to the disk.

        Raises UserError if the disk is full, and ValueError for a wrong number of vectors.
        """
        expected = (min(self.block, self.rows - number * self.block), self.width)
        if vectors.shape != expected:
            raise ValueError(f"block {number} has vectors {vectors.shape}, not {expected}")
        data = np.ascontiguousarray(vectors, "<f4").data.cast("B")
        offset = self._header + number * self.block * self.width * 4
        with self._disk_errors():
            while data:
                written = os.pwrite(self._vectors.fileno(), data, offset)
                data, offset = data[written:], offset + written
            os.fsync(self._vectors.fileno())
            # Only now, so that a marked block is on the disk even if the power fails.
            os.pwrite(self._done.fileno(), b"\1", number)
            os.fsync(self._done.fileno())

    def finish(self) -> None:
        """Renames the file to `output` once all blocks are written; one process does it.

        Raises UserError if a file of that name has appeared meanwhile.
        """
        self._lock(0, wait=True)
        unfinished = self.partial / VECTORS
        if not unfinished.exists():
            return
        if self.output.exists():
            raise UserError(f"--output {self.output} appeared meanwhile; ours is {unfinished}.")
        with self._disk_errors():
            unfinished.rename(self.output)
            self._remove_folder()

    def _remove_folder(self) -> None:
        """Moves the folder away first, so that a process that starts now finds it whole or not."""
        remains = Path(tempfile.mkdtemp(prefix=f".{self.output.name}.", dir=self.output.parent))
        try:
            self.partial.rename(remains / self.partial.name)
        except FileNotFoundError:
            pass  # another process found the output finished and has removed the folder
        finally:
            shutil.rmtree(remains, ignore_errors=True)

    def _begin(self, settings: dict[str, Any]) -> None:
        """Makes the folder under another name, then renames it: the first process wins."""
        size = self.rows * self.width * 4
        free = shutil.disk_usage(self.output.parent).free
        if size > free:
            raise UserError(
                f"--output {self.output}: needs {size / 1e9:,.2f} GB, but only {free / 1e9:,.2f} "
                "GB are free there."
            )
        with self._disk_errors():
            folder = Path(tempfile.mkdtemp(prefix=f".{self.output.name}.", dir=self.output.parent))
            try:
                with open(folder / VECTORS, "xb") as file:
                    file.write(_header((self.rows, self.width)))
                    file.truncate(file.tell() + size)  # a sparse file, which takes no space yet
                (folder / DONE).write_bytes(bytes(self.num_blocks))
                text = json.dumps(settings, indent=2) + "\n"
                (folder / SETTINGS).write_text(text, encoding="utf-8")
                folder.chmod(0o777 & ~_umask())
                folder.rename(self.partial)
            except OSError as error:
                shutil.rmtree(folder, ignore_errors=True)
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
                    raise

    def _check_settings(self, settings: dict[str, Any]) -> None:
        path = self.partial / SETTINGS
        try:
            begun = json.loads(path.read_text(encoding="utf-8"))
            different = [name for name in settings if begun.get(name) != settings[name]]
        except (OSError, ValueError, RecursionError, AttributeError) as error:
            raise UserError(f"{self.partial} is damaged ({error}); delete it.") from error
        if different:
            raise UserError(
                f"{self.partial} was begun with another {' and '.join(different)}: give the same "
                "arguments to resume, or delete it."
            )

    def _check_files(self) -> int:
        """Number of bytes before the first vector. UserError if the files have changed."""
        header = _header((self.rows, self.width))
        size = len(header) + self.rows * self.width * 4
        sizes = [os.fstat(file.fileno()).st_size for file in (self._vectors, self._done)]
        begins = os.pread(self._vectors.fileno(), len(header), 0)
        if sizes != [size, self.num_blocks] or begins != header:
            raise UserError(f"{self.partial} is damaged ({VECTORS} or {DONE}); delete it.")
        return len(header)

    def _is_done(self, number: int) -> bool:
        return os.pread(self._done.fileno(), 1, number) == b"\1"

    def _lock(self, number: int, wait: bool) -> bool:
        try:
            return lock_byte(self._done, number, wait=wait)
        except OSError as error:
            raise UserError(
                f"{self.partial}: files cannot be locked there ({error.strerror}): write to a "
                "local disk."
            ) from error

    @contextmanager
    def _disk_errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = ""
            if self.partial.is_dir():
                kept = f" Finished vectors are in {self.partial}: the same command resumes."
            raise UserError(f"--output {self.output}: {error.strerror}.{kept}") from error


def check_output(output: Path) -> None:
    """Raises UserError if `output` exists, or its folder does not or cannot be written."""
    if output.exists():
        raise UserError(f"--output {output} exists already; choose a new file.")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}; create it first.")
    try:
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}; choose another place.") from error


def _header(shape: tuple[int, int]) -> bytes:
    """The first bytes of a .npy file of vectors."""
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
