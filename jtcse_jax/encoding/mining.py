"""Hard negatives: texts near an anchor that are not its positives, with guards against mistakes.

A text near an anchor may be a positive that nobody marked as one. The guards leave out what is
likely to be one; they are those of `mine_hard_negatives` of sentence-transformers.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from jtcse_jax.encoding.exact_index import unit
from jtcse_jax.encoding.index import Index
from jtcse_jax.encoding.pair_texts import PairTexts
from jtcse_jax.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Guards:
    """What a negative must fulfil."""

    range_max: int = 100
    """Look at this many texts, those nearest to the anchor. Its positives, and a text equal to the
    anchor, are never among them."""
    max_score: float | None = None
    """Largest cosine of an anchor and a negative; by default no limit."""
    absolute_margin: float | None = None
    """A negative's cosine must be lower by this than that of the anchor and its positive (of
    several, the farthest); by default no margin."""
    relative_margin: float | None = 0.05
    """Likewise, as a share of the positive's cosine; 0.05 is what NV-Retriever (arXiv 2407.15831)
    found best. None for no margin."""
    range_min: int = 0
    """Skip this many of the nearest texts that have passed the other guards."""
    num_negatives: int = 1
    """Most negatives of a pair, the nearest ones."""

    def __post_init__(self) -> None:
        """Raises UserError for a value out of range."""
        for name in ("absolute_margin", "relative_margin"):
            value = getattr(self, name)
            if value is not None and not value >= 0:
                raise UserError(f"{option(name)} {value}: give a number from 0, or None.")
        if self.range_min < 0:
            raise UserError(f"--range-min {self.range_min}: give a number from 0.")
        if self.num_negatives < 1:
            raise UserError(f"--num-negatives {self.num_negatives}: give at least 1.")
        if self.range_min + self.num_negatives > self.range_max:
            raise UserError(
                f"--range-max {self.range_max} is below --range-min {self.range_min} plus "
                f"--num-negatives {self.num_negatives}: give a larger one."
            )


# Why a pair has no negative: no other text exists, or this guard refused the last candidate.
REASONS = ("no other text", "max_score", "absolute_margin", "relative_margin", "range_min")


class Mined(NamedTuple):
    """The negatives of an anchor."""

    numbers: np.ndarray  #: [k] int64, at most `num_negatives`, nearest first
    reason: str | None  #: one of REASONS if there is none


def hard_negatives(
    index: Index,
    texts: PairTexts,
    anchors: np.ndarray,
    anchor_vectors: np.ndarray,
    corpus_vectors: np.ndarray,
    guards: Guards,
) -> Iterator[Mined]:
    """Finds the negatives of each of the `anchors`.

    Args:
      index: has the vectors of the texts.
      texts: the numbers of the texts.
      anchors: [n] int64, numbers of anchors.
      anchor_vectors: [texts.num_anchors, D] floats, which may be mapped from a file.
      corpus_vectors: [texts.num_texts, D] floats, likewise.
      guards: what a negative must fulfil.
    """
    known = [texts.known(anchor) for anchor in anchors.tolist()]
    queries = unit(anchor_vectors[anchors])
    found = index.search(queries, guards.range_max + max(map(len, known), default=0))
    for anchor, query, excluded, (numbers, cosines) in zip(
        anchors.tolist(), queries, known, found, strict=True
    ):
        others = np.flatnonzero(~np.isin(numbers, excluded))[: guards.range_max]
        farthest = (unit(corpus_vectors[texts.positives(anchor)]) @ query).min()
        yield _passed(numbers[others], cosines[others], float(farthest), guards)


def _passed(numbers: np.ndarray, cosines: np.ndarray, positive: float, guards: Guards) -> Mined:
    """Applies the guards to candidates [k], nearest first; `positive` is the positive's cosine."""
    highest = {
        "no other text": None,
        "max_score": guards.max_score,
        "absolute_margin": _minus(positive, guards.absolute_margin),
        "relative_margin": _minus(positive, guards.relative_margin, abs(positive)),
    }
    for reason, limit in highest.items():
        if limit is not None:
            numbers = numbers[cosines <= limit]
            cosines = cosines[cosines <= limit]
        if not len(numbers):
            return Mined(numbers, reason)
    numbers = numbers[guards.range_min :][: guards.num_negatives]
    return Mined(numbers, None if len(numbers) else "range_min")


def _minus(positive: float, margin: float | None, scale: float = 1.0) -> float | None:
    return None if margin is None else positive - margin * scale


def option(name: str) -> str:
    """The option of the command line that sets a field."""
    return "--" + name.replace("_", "-")
