"""What every table is: a file of records with named columns, read as a stream."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jtcse_jax.errors import UserError

Cells = tuple[Any, ...]


class Table(ABC):
    """A file of records with named columns.

    Attributes:
        path: the file.
        names: the columns, in the file's order.
    """

    names: list[str]

    def __init__(self, path: Path):
        """Reads the names only. Raises UserError if the file does not have this format."""
        self.path = path

    def parts(self) -> list[range]:
        """Parts of the file that can be read independently."""
        return [range(1)]

    @abstractmethod
    def rows(self, part: range, names: Sequence[str]) -> Iterator[tuple[int, Cells]]:
        """The number of each record of a part, from 1, and its cells in the named columns.

        A cell is a string, None, or another value of JSON or Arrow; a blank line has one empty
        cell. Raises UserError for a record that cannot be read.
        """

    def place(self, part: range, number: int) -> str:
        """Where a record of a part is, for an error message."""
        return f"{self.path}: record {number}"

    def check(self, names: Sequence[str]) -> None:
        """Raises UserError unless each name is that of one column."""
        for name in names:
            if self.names.count(name) != 1:
                count = "two columns" if name in self.names else "no column"
                raise UserError(
                    f"{self.path} has {count} {name!r}; its columns are {', '.join(self.names)}"
                )
