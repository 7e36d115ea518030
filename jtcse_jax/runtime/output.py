"""Outputs that take long to make: in parts, by any number of processes, resumed after kills.

Until it is complete, an output is in the folder `NAME.partial` beside it. The folder has the
settings of the output, the files of its parts, a file `PART.done` for each finished part, and lock
files. A process locks the part that it works on. The system releases the lock when the process
ends, however it ends; another process then takes the part. Nothing else is shared, so the same
command may be started at any time, any number of times, on several hosts with a common file system.
If files cannot be locked, work is done twice, with the same result.
"""

import json
import os
import reprlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from jtcse_jax.errors import InUse, UserError
from jtcse_jax.runtime.files import read_json
from jtcse_jax.runtime.locks import lock

SETTINGS, PUBLISHED = "settings.json", "published"
_REMOVED = ".partial.removed."  # in the name of a folder while it is removed
_COPIED = 2**20  # bytes copied at once


class Gone(InUse):
    """Another process has completed or given up the output while this one worked on it."""


class Output:
    """A file or folder, of `num_parts` parts, that will be at `path`.

    Attributes:
        path: the complete output.
        folder: the folder of the unfinished output.
        num_parts: the number of parts.
    """

    def __init__(self, path: Path, num_parts: int = 1):
        """Makes nothing yet."""
        self.path = path
        self.folder = path.with_name(f"{path.name}.partial")
        self.num_parts = num_parts

    def begin(self, settings: Mapping[str, Any] | None = None) -> bool:
        """Makes the folder, or resumes that of an earlier or another process.

        `settings` are what determines the output, for JSON. Returns False, with nothing begun, if
        the output exists. Raises UserError if the folder was begun with other settings or cannot be
        made.
        """
        with self.writing():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            for remains in self.path.parent.glob(f".*{_REMOVED}*"):  # of killed processes
                shutil.rmtree(remains, ignore_errors=True)
            if (self.folder / PUBLISHED).exists():
                self.discard()
            self.folder.mkdir(exist_ok=True)
            # Checked only now: until its folder is gone, a complete output is at its path.
            if self.path.exists():
                with suppress(OSError):
                    self.folder.rmdir()  # unless something is in it
                return False
        if settings is not None:
            self._check_settings(settings)
        return True

    def part(self, number: int) -> str:
        """The name of a part; it has the number of all parts, so another division is not mixed."""
        return f"{number:06}-of-{self.num_parts:06}"

    def claim(self) -> Iterator[int]:
        """Yields the numbers of parts that are not done, each locked until the next one.

        First, in ascending order, the parts that no process works on; then, again from the first,
        those that another process left unfinished, for which it waits.
        """
        for wait in (False, True):
            for number in range(self.num_parts):
                if not self.is_done(number):
                    with self.lock(self.part(number), wait=wait) as ours:
                        if ours and not self.is_done(number):
                            yield number

    def is_done(self, number: int) -> bool:
        """Whether a process has finished the part."""
        return self._done(number).exists()

    def num_done(self) -> int:
        """The number of finished parts."""
        return len(list(self.folder.glob(f"*-of-{self.num_parts:06}.done")))

    def mark(self, number: int, facts: Mapping[str, int] | None = None) -> None:
        """Marks a part as done, when its files are on the disk; `facts` are kept for `sums`."""
        with self.new_file(self._done(number).name) as file:
            file.write(json.dumps(facts or {}).encode())

    def sums(self) -> dict[str, int]:
        """The sums of the facts of all parts."""
        with self.writing():  # the folder is gone if another process has published meanwhile
            facts = [json.loads(self._done(n).read_text()) for n in range(self.num_parts)]
        return {name: sum(each[name] for each in facts) for name in facts[0]}

    @contextmanager
    def new_file(self, name: str) -> Iterator[IO[bytes]]:
        """A file that is in the folder, and on the disk, once the block has ended without error."""
        with self.aside() as path:
            with open(path, "xb") as file:
                yield file
                _to_disk(file)
            path.replace(self.folder / name)

    @contextmanager
    def aside(self) -> Iterator[Path]:
        """A new name in the folder; a file or folder that still has it at the end is removed."""
        path = self.folder / f".{uuid.uuid4().hex}"
        with self.writing():
            try:
                yield path
            finally:
                path.unlink() if path.is_file() else shutil.rmtree(path, ignore_errors=True)

    def join(self, kind: str, path: Path) -> None:
        """Writes the files `PART.kind` of all parts to `path`, one after another."""
        with open(path, "xb") as whole:
            for number in range(self.num_parts):
                with open(self.folder / f"{self.part(number)}.{kind}", "rb") as file:
                    shutil.copyfileobj(file, whole, _COPIED)
            _to_disk(whole)

    @contextmanager
    def last_step(self) -> Iterator[bool]:
        """For `publish`: yields True if it is this process's task. Then removes the folder."""
        with self.lock(PUBLISHED, wait=True) as ours:
            # The process that published may have removed the folder since it released the lock.
            yield ours and self.folder.is_dir() and not (self.folder / PUBLISHED).exists()
        self.discard()

    def publish(self, whole: Path) -> None:
        """Renames the whole output, in the folder, to its path.

        Raises UserError if a file of that name has appeared meanwhile.
        """
        with self.writing():
            if self.path.exists():
                raise UserError(f"{self.path} appeared meanwhile; the new one is {whole}.")
            whole.rename(self.path)
            (self.folder / PUBLISHED).touch()

    def discard(self) -> None:
        """Removes the folder at once: a process that starts now finds all of it or nothing."""
        remains = self.folder.with_name(f".{self.path.name}{_REMOVED}{uuid.uuid4().hex}")
        with suppress(OSError):
            self.folder.rename(remains)
        shutil.rmtree(remains, ignore_errors=True)

    @contextmanager
    def lock(self, name: str, *, wait: bool = False) -> Iterator[bool]:
        """Holds a lock; yields False if another process has it or has removed the folder."""
        ours = False
        with ExitStack() as stack:
            with self.writing(), suppress(FileNotFoundError):
                ours = stack.enter_context(lock(self.folder / f"{name}.lock", wait=wait))
            yield ours

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Turns an OSError in the block into a UserError about the output, or Gone."""
        try:
            yield
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not self.folder.is_dir():
                raise Gone(
                    f"another process has completed or given up {self.path}: start again."
                ) from error
            advice = "choose another place"
            if self.folder.is_dir():
                advice = (
                    f"what is finished is in {self.folder}: free space there and start the same "
                    "command again"
                )
            reason = error.strerror or error
            raise UserError(f"{self.path} cannot be written: {reason}; {advice}.") from error

    def _check_settings(self, settings: Mapping[str, Any]) -> None:
        path = self.folder / SETTINGS
        with self.lock(SETTINGS, wait=True):
            if not path.exists():
                with self.new_file(SETTINGS) as file:
                    file.write(json.dumps(dict(settings), indent=1).encode())
        begun = read_json(path, advice=f"delete {self.folder}")
        different = [
            f"{name} ({reprlib.repr(begun.get(name))}, now {reprlib.repr(value)})"
            for name, value in settings.items()
            if begun.get(name) != value
        ]
        if different:
            raise UserError(
                f"{self.folder} was begun with another {' and '.join(different)}: give the same "
                "arguments to resume, or delete it."
            )

    def _done(self, number: int) -> Path:
        return self.folder / f"{self.part(number)}.done"


def _to_disk(file: IO[bytes]) -> None:
    file.flush()
    os.fsync(file.fileno())
