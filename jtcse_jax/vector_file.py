"""A .npy file of vectors that is written block by block, by several processes, across kills.

Until it is whole it lies in a folder beside it, `NAME.partial/`: the vectors, a JSON of what they
are vectors of, and one byte for each block, 1 once that block is on the disk. A process claims a
block by locking its byte; the system drops the lock when the process ends, however it ends, and
another one takes the block. Nothing else is shared, so that the same command may be started at any
time, any number of times, with the same result.
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
from jtcse_jax.locks import lock_byte, unlock_byte

VECTORS, SETTINGS, DONE = "vectors.npy", "settings.json", "done"


class VectorFile:
    """[rows, width] float32 vectors on their way into `output`. Used in a `with` statement."""

    def __init__(self, output: Path, rows: int, width: int, block: int, settings: dict[str, Any]):
        """Opens what an earlier or another process began, or begins.

        Args:
          output: the .npy file that there will be.
          rows: vectors in all.
          width: components of each.
          block: vectors written at once.
          settings: all that decides the vectors, for JSON; what is there must be of the same.
        Raises:
          UserError: `output` exists, its folder cannot be written or is too small, or there is a
            partial output of other settings.
        """
        check_output(output)
        self.output = output
        self.partial = output.with_name(f"{output.name}.partial")
        self.rows, self.width, self.block = rows, width, block
        self.num_blocks = -(-rows // block)
        settings = settings | {"rows": rows, "width": width, "block": block}
        if not self.partial.is_dir():
            self._begin(settings)
            if output.exists():  # another process finished between the first look and now
                with self._disk_errors():
                    self._remove_folder()
                check_output(output)
        try:
            self._check_settings(settings)
            with self._disk_errors():
                self._vectors = open(self.partial / VECTORS, "r+b", buffering=0)
                self._done = open(self.partial / DONE, "r+b", buffering=0)
        except UserError:
            check_output(output)  # what another process has just finished is not damaged
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
        """Vectors that are on the disk, whichever process wrote them."""
        done = np.frombuffer(os.pread(self._done.fileno(), self.num_blocks, 0), np.uint8)
        sizes = np.full(self.num_blocks, self.block)
        sizes[-1] = self.rows - self.block * (self.num_blocks - 1)
        return int(sizes[done == 1].sum())

    def claim(self, *, wait: bool) -> Iterator[int]:
        """The numbers, ascending, of blocks that nobody has written: each is ours while it is out.

        Blocks that another process is at are passed over; with `wait` they are waited for, and
        given out only if that process ended without writing them.
        """
        for number in range(self.num_blocks):
            if not self._is_done(number) and self._lock(number, wait):
                if not self._is_done(number):
                    yield number
                unlock_byte(self._done, number)

    def write(self, number: int, vectors: np.ndarray) -> None:
        """Puts the vectors of a claimed block on the disk.

        Raises UserError where the disk is full, and ValueError for another number of vectors.
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
            # Only now: a block that is marked is there, even if the power fails.
            os.pwrite(self._done.fileno(), b"\1", number)
            os.fsync(self._done.fileno())

    def finish(self) -> None:
        """Gives the file its name, once every block is there; one process does, the others see it.

        Raises UserError where a file of that name has appeared meanwhile.
        """
        self._lock(0, wait=True)
        unfinished = self.partial / VECTORS
        if not unfinished.exists():
            return
        if self.output.exists():
            raise UserError(f"--output {self.output}: appeared meanwhile; ours is {unfinished}.")
        with self._disk_errors():
            unfinished.rename(self.output)
            self._remove_folder()

    def _remove_folder(self) -> None:
        """In one piece: a process that starts now must not find half a folder."""
        remains = Path(tempfile.mkdtemp(prefix=f".{self.output.name}.", dir=self.output.parent))
        try:
            self.partial.rename(remains / self.partial.name)
        except FileNotFoundError:
            pass  # another process, which found the output finished, has removed it
        finally:
            shutil.rmtree(remains, ignore_errors=True)

    def _begin(self, settings: dict[str, Any]) -> None:
        """Makes the folder whole elsewhere, then gives it its name: the first process wins."""
        size = self.rows * self.width * 4
        free = shutil.disk_usage(self.output.parent).free
        if size > free:
            raise UserError(
                f"--output {self.output}: needs {size / 1e9:,.2f} GB, and {free / 1e9:,.2f} GB are "
                "free there."
            )
        with self._disk_errors():
            folder = Path(tempfile.mkdtemp(prefix=f".{self.output.name}.", dir=self.output.parent))
            try:
                with open(folder / VECTORS, "xb") as file:
                    file.write(_header((self.rows, self.width)))
                    file.truncate(file.tell() + size)  # a hole, which takes no room yet
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
            raise UserError(f"{self.partial}: damaged ({error}); delete it.") from error
        if different:
            raise UserError(
                f"{self.partial} was begun with another {' and '.join(different)}: go on with the "
                "same arguments, or delete it."
            )

    def _check_files(self) -> int:
        """The bytes before the first vector. UserError where the files are not as begun."""
        header = _header((self.rows, self.width))
        size = len(header) + self.rows * self.width * 4
        sizes = [os.fstat(file.fileno()).st_size for file in (self._vectors, self._done)]
        begins = os.pread(self._vectors.fileno(), len(header), 0)
        if sizes != [size, self.num_blocks] or begins != header:
            raise UserError(f"{self.partial}: damaged ({VECTORS} or {DONE}); delete it.")
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
                kept = f" What is done is kept in {self.partial}: the same command goes on from it."
            raise UserError(f"--output {self.output}: {error.strerror}.{kept}") from error


def check_output(output: Path) -> None:
    """Raises UserError where `output` exists, or its folder does not or cannot be written."""
    if output.exists():
        raise UserError(f"--output {output}: exists already; name a new file.")
    if not output.parent.is_dir():
        raise UserError(f"--output {output}: there is no folder {output.parent}; make it first.")
    try:
        tempfile.TemporaryFile(dir=output.parent).close()
    except OSError as error:
        raise UserError(f"--output {output}: {error.strerror}; name another place.") from error


def _header(shape: tuple[int, int]) -> bytes:
    """What a .npy file of vectors begins with."""
    file = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    return file.getvalue()


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
