"""The development set that a run monitors: Spearman with its interval, and embedding figures."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import numpy as np

from jtcse_jax.errors import writing
from jtcse_jax.evaluation.comparison import Difference, sts_differences
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
WATCHED = 512  # sentences in all-pairs figures: a few percent of an evaluation's time
COLLAPSED = 0.95  # mean cosine of different sentences above which vectors are indistinguishable
COSINES = "dev_cosines"  # folder in a workdir: STEP.npy, [p] float64, for every evaluation


class DevScore(NamedTuple):
    """Spearman's rho (raw) with its 95 % bootstrap interval."""

    spearman: float
    low: float
    high: float
    diagnostics: Mapping[str, float] = MappingProxyType({})  #: `summary`, names prefixed by dev_
    cosines: np.ndarray | None = None  #: [p] float64, of the pairs

    def __str__(self) -> str:
        return f"{100 * self.spearman:.2f} [{100 * self.low:.2f}, {100 * self.high:.2f}]"

    @property
    def collapsed(self) -> bool:
        """Whether the vectors of different sentences are nearly equal."""
        return self.diagnostics.get("dev_anisotropy", 0.0) > COLLAPSED

    def as_metrics(self) -> dict[str, float]:
        """Numbers for a checkpoint; without METRIC if collapsed, so it is never the best."""
        if self.collapsed:
            return {"dev_collapsed": 1.0}
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
        """The score of an encoder's cosines, with diagnostics of its embeddings."""
        embedded = embed_pairs(encode, self.pairs)
        figures = summary(embedded, most=WATCHED)
        return self._score(embedded.cosines)._replace(
            diagnostics={f"dev_{name}": value for name, value in figures.items()},
            cosines=embedded.cosines,
        )

    def difference(
        self, new: tuple[Path, int], old: tuple[Path, int], *, resamples: int = 1000
    ) -> Difference | None:
        """How much higher one (workdir, step) scores than another, raw.

        Paired over the pairs of this dev set. None if the cosines of a step were not kept or
        belong to another number of pairs.
        """
        cosines = [read_cosines(*each) for each in (new, old)]
        kept = [x for x in cosines if x is not None and len(x) == len(self.pairs)]
        if len(kept) < 2:
            return None
        one, other = ([{self.name: each}] for each in kept)
        gold = {self.name: self.pairs.gold}
        return sts_differences(one, other, gold, resamples=resamples)[self.name]

    def word_overlap(self) -> DevScore:
        """The score of a baseline that counts common words."""
        return self._score(word_overlap(self.pairs))

    def _score(self, scores: np.ndarray) -> DevScore:
        gold = self.pairs.gold
        return DevScore(spearman(scores, gold), *bootstrap_interval(scores, gold))


def keep_cosines(workdir: Path, step: int, cosines: np.ndarray) -> None:
    """Writes the cosines of a step's pairs, for paired comparisons after the run."""
    path = workdir / COSINES / f"{step}.npy"
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        unfinished = path.with_name(f".{path.name}")
        np.save(unfinished, cosines, allow_pickle=False)
        unfinished.replace(path)


def read_cosines(workdir: Path, step: int) -> np.ndarray | None:
    """The cosines that `keep_cosines` wrote, or None if they are absent or unreadable."""
    try:
        return np.load(workdir / COSINES / f"{step}.npy", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
