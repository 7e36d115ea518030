"""Word repetition: a second view of a sentence that differs from it in length (ESimCSE).

Dropout gives two views of equal length, and an encoder that reads lengths from positions may learn
to match views by their length. ESimCSE (arXiv 2109.04380, section 3.1) repeats some words of one
view. The function takes any sequence, so it repeats words or sub-words.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def repeat_words(
    words: Sequence[T], rate: float, rng: np.random.Generator, room: int | None = None
) -> list[T]:
    """The words in their order, some of them twice in a row.

    For N words the number of repeated words is uniform over 0, 1, ..., max(2, int(rate * N)),
    then limited to N and to `room`. Every set of that many words is equally likely. Even at rate 0
    up to two words are repeated.

    Args:
        words: N words or token ids; without [CLS] and [SEP], which must not be repeated. May be
            empty.
        rate: largest share of repeated words, from 0 to 1; 0.32 in the paper.
        rng: advanced by this call.
        room: most words that may be added, or None for no limit.

    Returns:
        A new list of N to 2N words.
    """
    count = int(rng.integers(_most_drawn(len(words), rate), endpoint=True))
    # The paper does not define the case of fewer words than drawn: here all are repeated.
    count = min(count, len(words), len(words) if room is None else room)
    repeated = set(rng.choice(len(words), size=count, replace=False).tolist()) if count else ()
    return [word for i, word in enumerate(words) for _ in range(2 if i in repeated else 1)]


def most_repeated(num_words: int, rate: float) -> int:
    """The largest number of words that `repeat_words` adds to `num_words` or fewer."""
    return min(num_words, _most_drawn(num_words, rate))


def _most_drawn(num_words: int, rate: float) -> int:
    return max(2, int(rate * num_words))
