"""Batches of similar sentences: hard negatives without a model and without labels.

A sentence's vector is the sum of its tokens' vectors, weighted by how rare they are (smooth inverse
frequency, Arora et al. 2017). A token's vector begins as random signs and becomes, four times, the
sum of the vectors of the sentences that it is in (reflective random indexing, Cohen et al. 2010):
tokens of one topic come together. `data.similar` makes one order of all items from these vectors,
once for each token cache. Near-duplicates, by the random signs themselves, are set apart.

An epoch starts at a random place of that order, divides it into as many blocks as there are full
batches, and visits the blocks at random. The beginning of a block is grouped in a batch; what is
left of all blocks, and the near-duplicates, is the pool that random sentences are taken from.
"""

import contextlib
import logging
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array

from jtcse_jax.data.shuffling import shuffled
from jtcse_jax.data.similar import near_duplicates, quantised, similar_order
from jtcse_jax.data.tokens import TokenCache
from jtcse_jax.errors import UserError, writing
from jtcse_jax.locks import lock_byte

_log = logging.getLogger(__name__)

_FORMAT = 1
_GROUP = 8  # neighbours that are in no order, in batches of at least as many
_DIMENSIONS = 128
_COMMON = 1e-3  # frequency of a token that weighs half of a rare one
_RARE = 2**7  # weight of a rare token; integers, as in `data.similar`
_ROUNDS = 4
_CHUNK = 2**14  # sentences, an even number


@dataclass(frozen=True)
class SimilarBatches:
    """The items of batches that group similar ones; each epoch visits every item once."""

    path: Path  #: of the file it is kept in
    order: np.ndarray  #: [n] int64, grouped items with similar neighbours, then near-duplicates
    num_grouped: int
    seconds: float  #: that planning took, or waiting for it

    def items(
        self, number: int, batch_size: int, random_share: float, seed: Sequence[int]
    ) -> np.ndarray:
        """[batch_size] int64, the items of a batch; fewer in the last, partial one.

        Args:
            number: of the batch in its epoch.
            batch_size: at most n.
            random_share: share of random items in a batch, from 0 to 1. There are more where
                near-duplicates are too many for it, and the last, partial batch is all random.
            seed: numbers from 0 on, other ones for every epoch.

        Raises:
            UserError: the order names an item that is not there.
        """
        count, grouped = len(self.order), self.num_grouped
        blocks = count // batch_size
        kept = min(round((1 - random_share) * batch_size), grouped // blocks)
        left = grouped - blocks * kept  # of all blocks
        pool, drawn = count - blocks * kept, batch_size - kept
        stop = (number + 1) * drawn if number < blocks else pool
        picked = shuffled(np.arange(number * drawn, stop), pool, (*seed, 0))
        apart = grouped + picked[picked >= left] - left
        # Block b starts at b * grouped // blocks; b * left // blocks are left of those before it.
        picked = picked[picked < left]
        positions = picked + kept * (((picked + 1) * blocks - 1) // max(left, 1) + 1)
        if number < blocks:
            block = shuffled(np.array([number]), blocks, (*seed, 1))
            group = block * grouped // blocks + np.arange(kept)
            positions = np.concatenate([group, positions])
        turned = (positions + shuffled(np.array([0]), grouped, (*seed, 2))) % grouped
        items = self.order[np.concatenate([turned, apart])]
        if items.min() < 0 or items.max() >= count:
            raise UserError(f"{self.path} is damaged; delete it")
        return items


def similar_batches(cache: TokenCache, num_items: int) -> SimilarBatches:
    """The order of a cache's items, planned unless it is kept beside the tokens.

    Item i is a sentence, of a pair the first. The same tokens give the same order on every machine.
    If several processes ask at once, only one plans. It takes 0.3 GB of memory for a million
    items.

    Raises:
        UserError: the cache is damaged, or the order cannot be written.
    """
    start = time.monotonic()
    path = cache.folder / f"similar{_FORMAT}-{num_items}.bin"
    if not _is_whole(path, num_items):
        with writing(path), open(path.with_suffix(".lock"), "ab") as lock:
            with contextlib.suppress(OSError):  # a file system without locks: planned twice
                lock_byte(lock, 0, wait=True)
            if not _is_whole(path, num_items):
                _log.info("planning batches of similar sentences")
                _plan(cache, num_items, path)
    stored = np.asarray(np.memmap(path, np.int64, mode="r"))
    return SimilarBatches(path, stored[1:], int(stored[0]), time.monotonic() - start)


def token_vectors(cache: TokenCache) -> tuple[np.ndarray, np.ndarray]:
    """By words and by topics, [vocabulary, 128] float64 integers; see the module.

    The cosine of two sentences' sums tells by words how many rare tokens they share, by topics
    whether their tokens come together in the text.
    """
    counts = np.zeros(cache.vocab_size)
    for bags in _bags(cache, len(cache)):
        counts += bags.sum(axis=0)
    weights = np.rint(_RARE / (1 + counts / counts.sum() / _COMMON))[:, None]
    shares = counts[:, None] * weights
    signs = np.random.default_rng(0).choice(np.array([-1, 1]), (len(counts), _DIMENSIONS))
    tokens = signs = quantised(signs)
    for _ in range(_ROUNDS):
        sums = np.zeros(tokens.shape)
        for bags in _bags(cache, len(cache)):
            sums += bags.T @ quantised(bags @ (weights * tokens)).astype(float)
        tokens = quantised(sums)
        tokens = tokens - np.rint((shares * tokens).sum(axis=0) / shares.sum())
    return weights * signs, weights * tokens


def sentence_vectors(cache: TokenCache, num_items: int, tokens: np.ndarray) -> np.ndarray:
    """[num_items, 128] int8, the sums of token vectors in each item's first sentence, quantised."""
    vectors = np.empty((num_items, tokens.shape[1]), np.int8)
    filled = 0
    for bags in _bags(cache, num_items * cache.views):
        sums = quantised(bags[:: cache.views] @ tokens)
        vectors[filled : filled + len(sums)] = sums
        filled += len(sums)
    return vectors


def _bags(cache: TokenCache, stop: int) -> Iterator[csr_array]:
    """How often each token is in each sentence, [sentences, vocabulary], of `stop` sentences."""
    for start in range(0, stop, _CHUNK):
        tokens = cache.run(start, min(start + _CHUNK, stop))
        ends = np.cumsum(cache.lengths[start : min(start + _CHUNK, stop)], dtype=np.int64)
        shape = (len(ends), cache.vocab_size)
        yield csr_array((np.ones(len(tokens)), tokens, np.append(0, ends)), shape=shape)


def _is_whole(path: Path, num_items: int) -> bool:
    """Whether an order is there; bytes that changed inside are found when they are read."""
    try:
        return (
            path.stat().st_size == 8 * (1 + num_items)
            and 1 <= np.fromfile(path, np.int64, 1)[0] <= num_items
        )
    except OSError:
        return False


def _plan(cache: TokenCache, num_items: int, path: Path) -> None:
    words, topics = token_vectors(cache)
    order = similar_order(sentence_vectors(cache, num_items, topics), _GROUP)
    apart = near_duplicates(sentence_vectors(cache, num_items, words), order)
    stored = np.concatenate([[num_items - apart.sum()], order[~apart], order[apart]])
    unfinished = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        # Not `tofile`, which hides that the disk was full for the last bytes.
        unfinished.write_bytes(stored.data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)
