"""The sentences of a source in blocks, for commands that process a text in order."""

from collections.abc import Iterable, Iterator
from itertools import islice

from jtcse_jax.data.sources import Source
from jtcse_jax.errors import UserError


class Blocks:
    """`blocks[n]` has the sentences from `n * size` on: `size` of them, fewer in the last block.

    Blocks are read one after another; an earlier block is found by reading from the start again.

    Attributes:
        source: the source.
        size: the size of a block.
        num_sentences: sentences of the source.
        num_blank: blank lines of the source, which are skipped.
    """

    def __init__(self, source: Source, size: int):
        """Counts the sentences, so that an error in the text comes before the work.

        Raises UserError for a text with errors or with two sentences a line.
        """
        if source.views > 1:
            raise UserError(f"{source.spec} has two sentences a line; give one a line.")
        self.num_sentences = sum(1 for _ in source.read())
        self.num_blank = source.blank
        self.source, self.size = source, size
        self._sentences: Iterator[str] = iter(())
        self._next = len(self)  # the block that follows in `_sentences`

    def __len__(self) -> int:
        """The number of blocks."""
        return -(-self.num_sentences // self.size)

    def __getitem__(self, number: int) -> list[str]:
        """The sentences of a block. Raises UserError if the text has become shorter."""
        if number < self._next:
            self._sentences, self._next = self.source.read(), 0
        skipped = (number - self._next) * self.size
        expected = min(self.size, self.num_sentences - number * self.size)
        block = list(islice(self._sentences, skipped, skipped + expected))
        self._next = number + 1
        if len(block) < expected:
            raise _changed(self.source)
        return block


def sentences_at(source: Source, numbers: Iterable[int]) -> dict[int, str]:
    """The sentences of these numbers, counted from 0; reads the text once, and keeps only them.

    Raises UserError if the text has become shorter.
    """
    wanted = set(numbers)
    count = 1 + max(wanted, default=-1)
    read = enumerate(islice(source.read(), count))
    found = {number: sentence for number, sentence in read if number in wanted}
    if len(found) < len(wanted):
        raise _changed(source)
    return found


def _changed(source: Source) -> UserError:
    return UserError(f"{source.spec} changed while it was read; start again.")
