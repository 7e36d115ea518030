"""The development set that a run watches: Spearman with an interval, and how vectors spread."""

import hashlib
from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jtcse_jax.evaluation.diagnostics import embed_pairs, summary
from jtcse_jax.evaluation.sts import (
    Encode,
    Pairs,
    bootstrap_interval,
    builtin_dev,
    load_pairs,
    spearman,
    word_overlap,
)

METRIC = "dev_spearman"
WATCHED = 512  # sentences of the all-pairs figures: a few percent of an evaluation's time


class DevScore(NamedTuple):
    """Spearman's rho (raw) with its 95 % bootstrap interval."""

    spearman: float
    low: float
    high: float
    diagnostics: Mapping[str, float] = MappingProxyType({})  #: `summary`, names with dev_

    def __str__(self) -> str:
        return f"{100 * self.spearman:.2f} [{100 * self.low:.2f}, {100 * self.high:.2f}]"

    def as_metrics(self) -> dict[str, float]:
        """The score as numbers for a checkpoint."""
        return {METRIC: self.spearman, "dev_low": self.low, "dev_high": self.high}


class Development:
    """Scored pairs: `builtin`, a file `s1<TAB>s2<TAB>score`, or an STS-B file or folder (dev)."""

    def __init__(self, name: str):
        self.name = name
        self.pairs: Pairs = builtin_dev() if name == "builtin" else load_pairs(name, "dev")

    def fingerprint(self) -> str:
        """sha256 (hex) of the pairs and their scores."""
        pairs = (*self.pairs.first, *self.pairs.second, *self.pairs.gold.tolist())
        return hashlib.sha256(repr(pairs).encode()).hexdigest()

    def score(self, encode: Encode) -> DevScore:
        """Of the cosines of an encoder, with diagnostics of its embeddings."""
        embedded = embed_pairs(encode, self.pairs)
        figures = summary(embedded, most=WATCHED)
        return self._score(embedded.cosines)._replace(
            diagnostics={f"dev_{name}": value for name, value in figures.items()}
        )

    def word_overlap(self) -> DevScore:
        """Of a baseline that counts common words."""
        return self._score(word_overlap(self.pairs))

    def _score(self, scores: np.ndarray) -> DevScore:
        gold = self.pairs.gold
        return DevScore(spearman(scores, gold), *bootstrap_interval(scores, gold))
