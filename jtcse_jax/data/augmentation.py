"""Word repetition: a second view of a sentence that differs from it in length (ESimCSE).

The two views that dropout makes of a sentence are equally long, and an encoder that reads lengths
from positions may learn to match them by that. ESimCSE (arXiv 2109.04380, section 3.1) repeats
some words of one view. Words or sub-words: the function takes any sequence.
"""

from collections.abc import Sequence
from typing import TypeVar

import numpy as np

T = TypeVar("T")


def repeat_words(words: Sequence[T], rate: float, rng: np.random.Generator) -> list[T]:
    """The words in their order, some of them twice in a row.

    The number of repeated words is uniform over 0, 1, ..., max(2, int(rate * N)), N words given,
    and at most N; which ones is uniform over all sets of so many. Even at rate 0, up to two.

    Args:
        words: N words or token ids; without [CLS] and [SEP], which must not be repeated. May be
            empty.
        rate: largest share of repeated words, from 0 to 1; 0.32 in the paper.
        rng: advanced by this call.

    Returns:
        A new list of N to 2N words.
    """
    most = max(2, int(rate * len(words)))
    # The paper leaves open what sentences of fewer words than drawn get: all of theirs, twice.
    count = min(int(rng.integers(most, endpoint=True)), len(words))
    repeated = set(rng.choice(len(words), size=count, replace=False).tolist()) if count else ()
    return [word for i, word in enumerate(words) for _ in range(2 if i in repeated else 1)]
