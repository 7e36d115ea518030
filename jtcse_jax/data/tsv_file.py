"""Writes a .tsv file part by part, by several processes, and resumes after kills."""

import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from jtcse_jax.errors import UserError
from jtcse_jax.runtime.files import check_new
from jtcse_jax.runtime.output import Output
from jtcse_jax.user_path import user_path

_SECONDS = 10  # between two lines of progress
_ONE_CELL = str.maketrans("\t\n\r", "   ")


class TsvFile:
    """A .tsv file whose lines are made from numbered items, `size` of them at a time.

    Attributes:
        folder: the folder of the unfinished file.
    """

    def __init__(
        self,
        name: str,
        total: int,
        size: int,
        noun: str,
        settings: dict[str, object],
        header: Sequence[str] = (),
    ):
        """Opens the partial output of an earlier or another process, or begins a new one.

        Args:
            name: the file to write.
            total: number of all items.
            size: number of items of a part.
            noun: what an item is, in the plural, for the lines of progress.
            settings: everything that determines the file, for JSON.
            header: names of the columns, for a first line; none without.

        Raises:
            UserError: the file exists or cannot be written, or the partial output has other
                settings.
        """
        self._total, self._size, self._noun, self._header = total, size, noun, header
        self._output = Output(user_path(name), -(-total // size))
        self.folder = self._output.folder
        if not self._output.begin(settings):
            check_new(name)

    def fill(
        self, make: Callable[[int], tuple[Sequence[Sequence[str]], dict[str, int]]]
    ) -> dict[str, int]:
        """Writes the missing parts and publishes the file.

        Args:
            make: gets the number of a part; returns its lines, as cells, and counts of them, always
                under the same names.

        Returns:
            The sums of the counts; {} if another process has published the file.
        """
        resumed = self._num_done()
        if resumed:
            say(f"resuming after {resumed:,} of {self._total:,} {self._noun}")
        started = reported = time.monotonic()
        made = 0
        for number in self._output.claim():
            lines, counts = make(number)
            if self._header and number == 0:
                lines = [self._header, *lines]
            with self._output.new_file(f"{self._output.part(number)}.tsv") as file:
                file.write("".join("\t".join(cells) + "\n" for cells in lines).encode())
            self._output.mark(number, counts)
            made += min(self._size, self._total - number * self._size)
            now = time.monotonic()
            if now - reported >= _SECONDS:
                reported = now
                self._say_progress(made / (now - started))
        sums = {}
        with self._output.last_step() as ours:
            if ours:
                sums = self._output.sums()
                with self._output.aside() as whole:
                    self._output.join("tsv", whole)
                    self._output.publish(whole)
        return sums

    def _num_done(self) -> int:
        return min(self._output.num_done() * self._size, self._total)

    def _say_progress(self, rate: float) -> None:
        done = self._num_done()
        minutes, seconds = divmod(round((self._total - done) / rate), 60)
        hours, minutes = divmod(minutes, 60)
        left = f"{hours}:{minutes:02}:{seconds:02}"
        say(f"{done:,} of {self._total:,} {self._noun}, {rate:,.1f} a second, {left} left")


def check_tsv(name: str) -> None:
    """Raises UserError unless `--output NAME` is a new file that the trainer reads as a .tsv."""
    check_new(name)
    if Path(name).suffix != ".tsv":
        raise UserError(
            f"--output {name}: give a name that ends in .tsv; the trainer recognises such files by "
            "this ending."
        )


def to_cell(sentence: str) -> str:
    """The sentence as a column: tabs and line breaks become spaces, white space is stripped."""
    return sentence.translate(_ONE_CELL).strip()


def say(line: str) -> None:
    """Prints a line on stderr at once."""
    print(line, file=sys.stderr, flush=True)
