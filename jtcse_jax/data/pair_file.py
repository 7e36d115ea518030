"""A TSV of sentence pairs that takes hours to make; a killed run loses only minutes of work.

Pairs are written to `OUTPUT.partial` in windows; each window is on disk before the next one starts.
`OUTPUT.partial.json` beside it has the settings the pairs were made with. At the end the file is
renamed to OUTPUT, so a file of that name is always complete.
"""

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from types import TracebackType

from jtcse_jax.errors import UserError
from jtcse_jax.runtime.locks import lock_file

_ONE_CELL = str.maketrans("\t\n\r", "   ")


class PairFile:
    """The output file, open for writing and locked by this process.

    Attributes:
        pairs: pairs written so far, including those of earlier runs.
        unchanged: those of them whose two sentences are equal.
    """

    def __init__(self, output: Path | str, settings: Mapping[str, object]):
        """Opens the partial file, new or from an earlier run with the same settings.

        Args:
            output: the TSV to make.
            settings: what the second sentences depend on; values that survive JSON unchanged.
        Raises:
            UserError: the output exists, cannot be written or is being written by another
                process; the partial file was made with other settings.
        """
        self.pairs = self.unchanged = 0
        self._output = Path(output)
        self._partial = self._output.with_name(self._output.name + ".partial")
        self._sidecar = self._output.with_name(self._output.name + ".partial.json")
        self._settings = dict(settings)
        self._refuse_existing()
        with self._said_in_one_line():
            # Unbuffered, so that a full disk raises an error at the write itself.
            self._file = open(self._partial, "a+b", buffering=0)
        try:
            self._lock()
            with self._said_in_one_line():
                self._check_settings()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> "PairFile":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the file and leaves it in place; an empty file is removed."""
        if os.fstat(self._file.fileno()).st_size == 0:
            self._partial.unlink(missing_ok=True)
            self._sidecar.unlink(missing_ok=True)
        self._file.close()

    def resume(self, sentences: Iterator[str], window: int) -> int:
        """Keeps the complete windows of the file and skips their sentences in `sentences`.

        The rest is removed, for example a last line that was cut off. Windows that are made again
        consist of the same sentences, so the result does not depend on when a run was killed.

        Args:
            sentences: the input from its first sentence.
            window: pairs in a window, at least 1.
        Returns:
            The number of pairs kept.
        Raises:
            UserError: a line is not the pair of its sentence: the input is another or the file is
                damaged.
        """
        with self._said_in_one_line():
            self._file.seek(0)
            lines = sum(1 for line in _lines(self._file) if line.endswith(b"\n"))
            self._file.seek(0)
            end = 0
            for line in islice(_lines(self._file), lines // window * window):
                self._count(self._checked(line, next(sentences, None)))
                end += len(line)
            self._file.truncate(end)
        return self.pairs

    def append(self, pairs: list[tuple[str, str]]) -> None:
        """Writes a window of pairs; they are on disk when this returns.

        Tabs and line breaks inside a sentence become spaces. Raises UserError if the disk is full
        or fails; earlier windows are kept.
        """
        cells = [(to_cell(first), to_cell(second)) for first, second in pairs]
        rest = memoryview("".join(f"{first}\t{second}\n" for first, second in cells).encode())
        with self._said_in_one_line():
            while rest:
                rest = rest[self._file.write(rest) :]
            os.fsync(self._file.fileno())
        for pair in cells:
            self._count(pair)

    def finish(self) -> None:
        """Renames the file to OUTPUT. Raises UserError if a file of that name has appeared."""
        self._refuse_existing()
        with self._said_in_one_line():
            os.rename(self._partial, self._output)
            self._sidecar.unlink(missing_ok=True)

    def _refuse_existing(self) -> None:
        if self._output.exists():
            raise UserError(f"{self._output} exists already; name a new file, or remove it.")

    def _lock(self) -> None:
        """Locks the file; the system frees the lock when the process ends, whatever the reason."""
        if not lock_file(self._file):
            raise UserError(
                f"{self._partial} is being written by another process; wait for it, or name "
                "another output."
            )

    def _check_settings(self) -> None:
        if os.fstat(self._file.fileno()).st_size == 0:
            unfinished = self._sidecar.with_name(self._sidecar.name + ".new")
            unfinished.write_text(json.dumps(self._settings, indent=1) + "\n", encoding="utf-8")
            os.replace(unfinished, self._sidecar)
            return
        try:
            begun_with = json.loads(self._sidecar.read_text(encoding="utf-8"))
            if not isinstance(begun_with, dict):
                raise ValueError("not an object")
        except (FileNotFoundError, ValueError, RecursionError):
            raise UserError(
                f"{self._partial}: {self._sidecar.name}, which has its settings, is absent or "
                "damaged; remove both to start again, or name another output."
            ) from None
        for name in sorted(begun_with.keys() | self._settings.keys()):
            old, new = begun_with.get(name), self._settings.get(name)
            if old != new:
                raise UserError(
                    f"{self._partial} was begun with {name} = {old!r} and now it is {new!r}; give "
                    "the old value, remove the file to start again, or name another output."
                )

    def _checked(self, line: bytes, sentence: str | None) -> tuple[str, str]:
        columns = line.decode(errors="replace").removesuffix("\n").split("\t")
        whole = len(columns) == 2 and columns[1].strip() != ""
        if not whole or sentence is None or columns[0] != to_cell(sentence):
            raise UserError(
                f"{self._partial}:{self.pairs + 1}: not the pair of the input's sentence "
                f"{self.pairs + 1}: give the input it was begun with, or remove the file to start "
                "again."
            )
        return columns[0], columns[1]

    def _count(self, pair: tuple[str, str]) -> None:
        self.pairs += 1
        self.unchanged += pair[0] == pair[1]

    @contextlib.contextmanager
    def _said_in_one_line(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            kept = self._partial.exists() and self._partial.stat().st_size
            advice = (
                f"{self._partial} keeps the finished pairs; run the same command again to resume."
                if kept
                else "name another output."
            )
            raise UserError(f"{self._output}: {error.strerror or error}; {advice}") from error


def to_cell(sentence: str) -> str:
    """The sentence as a column: tabs and line breaks become spaces, white space is stripped."""
    return sentence.translate(_ONE_CELL).strip()


def _lines(file) -> Iterator[bytes]:
    """The file's lines from its current position, read in blocks."""
    with open(os.dup(file.fileno()), "rb") as buffered:
        yield from buffered
