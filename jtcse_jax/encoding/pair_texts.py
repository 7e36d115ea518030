"""The distinct texts of pairs, and of a corpus, by number; the texts themselves stay in files."""

from collections.abc import Callable, Iterable, Iterator
from hashlib import blake2b
from itertools import chain, compress, islice
from pathlib import Path

import numpy as np

from jtcse_jax.data.stored_texts import StoredTexts, stored_texts
from jtcse_jax.errors import UserError

_DIGEST = 16  # bytes; among a billion texts, the chance that two have the same digest is 10^-21

Read = Callable[[], Iterable[str]]


class PairTexts:
    """Numbers the distinct anchors, and the distinct texts that may be negatives.

    The latter are the positives, then the other texts of the corpus, both in the order of reading.
    Texts are compared by their digests. In memory are some 50 bytes for each text.

    Attributes:
      num_anchors: number of distinct anchors.
      num_texts: number of distinct positives and texts of the corpus.
      pairs: [n, 2] int64, the numbers of each pair's anchor and positive.
    """

    def __init__(self, sentences: Read, corpus: Read = lambda: ()):
        """Reads both once.

        Args:
          sentences: gives anchors and positives, one by one in turn, always the same.
          corpus: gives more texts, always the same.
        """
        self._sentences, self._corpus = sentences, corpus
        digests = _digests(sentences()).reshape(-1, 2)
        anchors, self._new_anchor = _numbered(digests[:, 0])
        texts = np.concatenate([digests[:, 1], _digests(corpus())])
        numbers, self._new_text = _numbered(texts)
        self.pairs = np.stack([anchors, numbers[: len(anchors)]], axis=1)
        self.num_anchors, self.num_texts = int(self._new_anchor.sum()), int(self._new_text.sum())
        order = np.argsort(anchors, kind="stable")
        self._positives = self.pairs[order, 1]
        self._starts = np.searchsorted(anchors[order], np.arange(self.num_anchors + 1))
        self._equal = np.full(self.num_anchors, -1)
        _, equal, text = np.intersect1d(
            digests[self._new_anchor, 0],
            texts[self._new_text],
            assume_unique=True,
            return_indices=True,
        )
        self._equal[equal] = text

    def positives(self, anchor: int) -> np.ndarray:
        """The numbers of an anchor's positives, each once."""
        return np.unique(self._positives[self._starts[anchor] : self._starts[anchor + 1]])

    def known(self, anchor: int) -> np.ndarray:
        """The numbers of its positives and of the text equal to the anchor, if there is one."""
        equal = self._equal[anchor]
        return self.positives(anchor) if equal < 0 else np.append(self.positives(anchor), equal)

    def stored(self, folder: Path) -> tuple[StoredTexts, StoredTexts]:
        """The anchors and the other texts, by their numbers, from files in `folder`.

        Reads both again, unless the files are there; the folder must belong to these texts only.
        Raises UserError if they have changed, or if the files cannot be written.
        """
        anchors = islice(self._sentences(), 0, None, 2)
        texts = chain(islice(self._sentences(), 1, None, 2), self._corpus())
        return (
            stored_texts(folder / "anchors", _first(anchors, self._new_anchor)),
            stored_texts(folder / "texts", _first(texts, self._new_text)),
        )


def _numbered(digests: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The number of each digest, counted in the order of first occurrence, and which are first."""
    _, first, inverse = np.unique(digests, return_index=True, return_inverse=True)
    order = np.argsort(first)
    numbers = np.empty_like(order)
    numbers[order] = np.arange(len(order))
    is_first = np.zeros(len(digests), bool)
    is_first[first] = True
    return numbers[inverse], is_first


def _digests(texts: Iterable[str]) -> np.ndarray:
    """[n] of 16 bytes."""
    buffer = bytearray()
    for text in texts:
        buffer += blake2b(text.encode(), digest_size=_DIGEST).digest()
    return np.frombuffer(buffer, f"S{_DIGEST}")


def _first(texts: Iterable[str], is_first: np.ndarray) -> Iterator[str]:
    """The texts that `is_first` [n] marks; UserError if there are fewer than n texts."""
    marks = iter(is_first)
    yield from compress(texts, marks)
    if next(marks, None) is not None:
        raise UserError("The text changed while it was read; start again.")
