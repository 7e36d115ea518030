"""Texts in a file that is mapped, read by number: for more texts than fit in memory.

The file has the UTF-8 bytes of all texts, and behind them the position where each text ends, int64,
and the number of texts, likewise.
"""

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import overload

import numpy as np

from jtcse_jax.runtime.output import Output


class StoredTexts(Sequence[str]):
    """The texts of a file that `stored_texts` made."""

    def __init__(self, path: Path):
        """Maps the file."""
        self._bytes = np.memmap(path, np.uint8, "r")
        count = int(self._bytes[-8:].view("<i8")[0])
        self._ends = self._bytes[-8 * (count + 1) : -8].view("<i8")

    def __len__(self) -> int:
        """Number of texts."""
        return len(self._ends)

    @overload
    def __getitem__(self, number: int) -> str: ...

    @overload
    def __getitem__(self, number: slice) -> list[str]: ...

    def __getitem__(self, number: int | slice) -> str | list[str]:
        """One text, or the list of those of a slice."""
        if isinstance(number, slice):
            return [self[each] for each in range(*number.indices(len(self)))]
        number = range(len(self))[number]
        start = int(self._ends[number - 1]) if number else 0
        return self._bytes[start : self._ends[number]].tobytes().decode()


class TextBlocks:
    """`blocks[n]` has the texts from `n * size` on: `size` of them, fewer in the last block."""

    def __init__(self, texts: Sequence[str], size: int):
        """Reads nothing yet."""
        self._texts, self._size = texts, size

    def __getitem__(self, number: int) -> list[str]:
        """The texts of a block."""
        return list(self._texts[number * self._size : (number + 1) * self._size])


def stored_texts(path: Path, texts: Iterable[str]) -> StoredTexts:
    """The texts, mapped from the file `path`, which one process makes if it is absent.

    The folder of `path` must belong to these texts only. Raises UserError if it cannot be written.
    """
    output = Output(path)
    if output.begin():
        for number in output.claim():  # the only part
            with output.new_file("whole") as file:
                ends, end = array("q"), 0
                for text in texts:
                    end += file.write(text.encode())
                    ends.append(end)
                ends.append(len(ends))
                file.write(np.array(ends, "<i8").data)
            output.mark(number)
        with output.last_step() as ours:
            if ours:
                output.publish(output.folder / "whole")
    return StoredTexts(path)
