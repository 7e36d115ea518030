"""Batches of similar sentences: hard negatives without labels.

`data.similar` computes one order of all items from the vectors of their sentences, encoded by the
start model. Near-duplicates are kept separate.

An epoch starts at a random position of that order, divides it into as many blocks as there are full
batches, and visits the blocks in random order. The beginning of a block is grouped in one batch.
The rest of all blocks, and the near-duplicates, form the pool from which random sentences are
drawn.
"""

import io
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from jtcse_jax.data.shuffling import shuffled
from jtcse_jax.data.similar import near_duplicates, similar_order
from jtcse_jax.errors import UserError, writing

_GROUP = 8  # neighbours in arbitrary order; for batches of at least this size


@dataclass(frozen=True)
class SimilarBatches:
    """The items of batches that group similar ones; each epoch visits every item once."""

    order: np.ndarray  #: [n] int64, grouped items with similar neighbours, then near-duplicates
    num_grouped: int

    @classmethod
    def plan(cls, vectors: np.ndarray) -> "SimilarBatches":
        """Groups items by the cosines of their vectors, [n, d] as in `similar_order`.

        Of items with a cosine above 0.9 one is grouped; the rest are near-duplicates.
        """
        order = similar_order(vectors, _GROUP)
        apart = near_duplicates(vectors, order)
        return cls(np.concatenate([order[~apart], order[apart]]), int((~apart).sum()))

    def save(self, path: Path) -> None:
        """Writes the order atomically. Raises UserError if that fails."""
        unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        try:
            content = io.BytesIO()  # numpy does not notice a disk that fills up at the end
            np.save(content, np.append(self.num_grouped, self.order))
            with writing(path):
                unfinished.write_bytes(content.getbuffer())
                unfinished.replace(path)
        finally:
            unfinished.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path, num_items: int) -> "SimilarBatches":
        """Maps what `save` wrote into memory.

        Raises:
            UserError: the file is absent, damaged, or has another number of items.
        """
        try:
            num_grouped, order = np.split(np.load(path, mmap_mode="r"), [1])
            if (
                num_grouped.dtype == np.int64
                and 1 <= num_grouped[0] <= num_items
                and np.array_equal(np.sort(order), np.arange(num_items))
            ):
                return cls(order, int(num_grouped[0]))
        except (OSError, ValueError, EOFError, IndexError):
            pass
        raise UserError(
            f"{path}: the order of similar batches is absent or damaged. Restore the file, or "
            "name a new --workdir."
        )

    def items(
        self, number: int, batch_size: int, random_share: float, seed: Sequence[int]
    ) -> np.ndarray:
        """[batch_size] int64, the items of a batch; fewer in the last, partial one.

        Args:
            number: number of the batch in its epoch.
            batch_size: at most n.
            random_share: share of random items in a batch, from 0 to 1. The share is larger if
                there are too many near-duplicates for it; the last, partial batch is all random.
            seed: non-negative numbers, different for every epoch.
        """
        count, grouped = len(self.order), self.num_grouped
        blocks = count // batch_size
        kept = min(round((1 - random_share) * batch_size), grouped // blocks)
        left = grouped - blocks * kept  # of all blocks
        pool, drawn = count - blocks * kept, batch_size - kept
        stop = (number + 1) * drawn if number < blocks else pool
        picked = shuffled(np.arange(number * drawn, stop), pool, (*seed, 0))
        apart = grouped + picked[picked >= left] - left
        # Block b starts at b * grouped // blocks; the blocks before it leave b * left // blocks.
        picked = picked[picked < left]
        positions = picked + kept * (((picked + 1) * blocks - 1) // max(left, 1) + 1)
        if number < blocks:
            block = shuffled(np.array([number]), blocks, (*seed, 1))
            group = block * grouped // blocks + np.arange(kept)
            positions = np.concatenate([group, positions])
        turned = (positions + shuffled(np.array([0]), grouped, (*seed, 2))) % grouped
        return self.order[np.concatenate([turned, apart])]
