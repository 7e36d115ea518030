"""The development set that a run watches: Spearman with an interval, beside word overlap."""

from typing import NamedTuple

import numpy as np

from jtcse_jax.evaluation.sts import (
    Encode,
    Pairs,
    bootstrap_interval,
    builtin_dev,
    cosine_scores,
    load_pairs,
    spearman,
    word_overlap,
)

METRIC = "dev_spearman"


class DevScore(NamedTuple):
    """Spearman's rho (raw) with its 95 % bootstrap interval."""

    spearman: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{100 * self.spearman:.2f} [{100 * self.low:.2f}, {100 * self.high:.2f}]"

    def as_metrics(self) -> dict[str, float]:
        """The score as numbers for a log."""
        return {METRIC: self.spearman, "dev_low": self.low, "dev_high": self.high}


class Development:
    """Scored pairs: `builtin`, a file `s1<TAB>s2<TAB>score`, or an STS-B file or folder (dev)."""

    def __init__(self, name: str):
        self.name = name
        self.pairs: Pairs = builtin_dev() if name == "builtin" else load_pairs(name, "dev")

    def score(self, encode: Encode) -> DevScore:
        """Of the cosines of an encoder."""
        return self._score(cosine_scores(encode, self.pairs))

    def word_overlap(self) -> DevScore:
        """Of a baseline that counts common words."""
        return self._score(word_overlap(self.pairs))

    def _score(self, scores: np.ndarray) -> DevScore:
        gold = self.pairs.gold
        return DevScore(spearman(scores, gold), *bootstrap_interval(scores, gold))
