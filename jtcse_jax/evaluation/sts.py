"""Semantic textual similarity: scores an encoder by how it ranks sentence pairs.

An encoder is any function from n sentences to an array [n, D]; the score of a pair is the cosine of
its two embeddings. The protocol is the "all" setting: the pairs of all subsets of a task are
concatenated, and one correlation is computed. Correlations are raw (-1 to 1), not times 100.
"""

import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.sts_data import Pairs, StsTask, builtin_dev, load_pairs, load_sts

__all__ = [
    "Encode",
    "PROTOCOL",
    "Pairs",
    "StsScore",
    "StsTask",
    "bootstrap_interval",
    "bootstrap_spearman",
    "builtin_dev",
    "encode_distinct",
    "evaluate_sts",
    "load_pairs",
    "load_sts",
    "pair_cosines",
    "pearson",
    "score_sts",
    "spearman",
    "sts_cosines",
    "word_overlap",
]

logger = logging.getLogger(__name__)

Encode = Callable[[list[str]], np.ndarray]
# Describes the scores as printed.
PROTOCOL = "Spearman of the cosines, over all pairs of a task together, times 100"


class StsScore(NamedTuple):
    """Correlations (raw, -1 to 1) of one task and its number of pairs."""

    spearman: float
    pearson: float
    pairs: int
    subsets: dict[str, "StsScore"]  #: the score of each subset; empty if there is only one
    undefined: str = ""  #: why a correlation is undefined and counted as 0; "" if it is defined


def evaluate_sts(encode: Encode, tasks: Sequence[StsTask]) -> dict[str, StsScore]:
    """Returns the score of every task by name, and under "average" the mean over the tasks.

    Each distinct sentence of all tasks is encoded once, in one call of `encode`. "average" has the
    unweighted means and the total number of pairs. Errors as in `encode_distinct`.
    """
    return score_sts(sts_cosines(encode, tasks), tasks)


def sts_cosines(encode: Encode, tasks: Sequence[StsTask]) -> dict[str, np.ndarray]:
    """Returns the cosines of each task's pairs, [n] float64, encoded as in `evaluate_sts`."""
    all_pairs = {task.name: task.pairs for task in tasks}
    sentences = (s for pairs in all_pairs.values() for s in (*pairs.first, *pairs.second))
    embeddings, index = encode_distinct(encode, sentences)
    return {name: pair_cosines(embeddings, index, pairs) for name, pairs in all_pairs.items()}


def score_sts(cosines: Mapping[str, np.ndarray], tasks: Sequence[StsTask]) -> dict[str, StsScore]:
    """Returns the result of `evaluate_sts`, from the cosines of each task's pairs.

    Warns if a correlation is undefined because one side is constant, and counts it as 0.
    """
    scores = {}
    for task in tasks:
        ends = np.cumsum([len(pairs) for pairs in task.subsets.values()])[:-1]
        parts = np.split(cosines[task.name], ends)
        subsets = {
            name: _score(f"{task.name} {name}", part, pairs.gold)
            for (name, pairs), part in zip(task.subsets.items(), parts, strict=True)
        }
        whole = _score(task.name, cosines[task.name], task.pairs.gold)
        scores[task.name] = whole._replace(subsets=subsets if len(subsets) > 1 else {})
    scores["average"] = StsScore(
        spearman=float(np.mean([score.spearman for score in scores.values()])),
        pearson=float(np.mean([score.pearson for score in scores.values()])),
        pairs=sum(score.pairs for score in scores.values()),
        subsets={},
    )
    return scores


def encode_distinct(encode: Encode, sentences: Iterable[str]) -> tuple[np.ndarray, dict[str, int]]:
    """Returns the embeddings [n, D] of the distinct sentences, and the row of each sentence.

    They are encoded in one call. Raises `UserError` with a sentence whose embedding is not finite,
    and `ValueError` if `encode` does not return [n, D].
    """
    distinct = list(dict.fromkeys(sentences))
    embeddings = np.asarray(encode(distinct))
    if embeddings.ndim != 2 or len(embeddings) != len(distinct):
        raise ValueError(
            f"encode returned {embeddings.shape} for {len(distinct)} sentences, not [n, D]"
        )
    bad = np.flatnonzero(~np.isfinite(embeddings).all(axis=1))
    if len(bad):
        raise UserError(
            f"the model's embeddings of {len(bad)} of {len(distinct)} sentences are not finite "
            f"(first: {distinct[bad[0]]!r}); use an earlier checkpoint or float32"
        )
    return embeddings, {sentence: row for row, sentence in enumerate(distinct)}


def pair_cosines(embeddings: np.ndarray, index: dict[str, int], pairs: Pairs) -> np.ndarray:
    """Returns the cosine of each pair's rows of `embeddings`, [n] float64; 0 for a zero row."""
    # In float64: near-equal cosines of float32 could tie or swap, and the score is about ranks.
    one = embeddings[[index[sentence] for sentence in pairs.first]].astype(np.float64)
    two = embeddings[[index[sentence] for sentence in pairs.second]].astype(np.float64)
    norms = np.linalg.norm(one, axis=1) * np.linalg.norm(two, axis=1)
    products = np.sum(one * two, axis=1)
    return np.divide(products, norms, out=np.zeros_like(products), where=norms > 0)


def word_overlap(pairs: Pairs) -> np.ndarray:
    """Returns the share of common words (Jaccard, lower-cased) of each pair, [n] float64.

    It is the baseline that any sentence encoder must beat. Two sentences without words have 0.
    """
    return np.array(
        [_jaccard(one, two) for one, two in zip(pairs.first, pairs.second, strict=True)]
    )


def spearman(scores: np.ndarray, gold: np.ndarray) -> float:
    """Returns Spearman's rank correlation of [n] and [n], -1 to 1; ties share their mean rank.

    If either side is constant the coefficient is undefined and 0.0 is returned. Breaking the ties
    at random gives 0 on average, and a collapsed encoder, which ranks nothing, must lose against
    every other when the best step is chosen (a NaN would win or lose by accident). Raises
    `ValueError` for unequal lengths, fewer than two pairs, or values that are not finite.
    """
    scores, gold = _checked(scores, gold)
    once = np.ones((1, len(scores)), dtype=np.int64)
    return float(_counted_spearman(scores, gold, once)[0])


def pearson(scores: np.ndarray, gold: np.ndarray) -> float:
    """Returns Pearson's linear correlation; 0.0 for a constant side, errors as in `spearman`."""
    scores, gold = _checked(scores, gold)
    if np.ptp(scores) == 0 or np.ptp(gold) == 0:
        return 0.0
    once = np.ones((1, len(scores)), dtype=np.int64)
    return float(_counted_correlation(scores[None], gold[None], once)[0])


def bootstrap_interval(
    scores: np.ndarray,
    gold: np.ndarray,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> tuple[float, float]:
    """Returns (low, high), the percentile bootstrap interval of `spearman(scores, gold)`.

    Pairs are drawn with replacement. The interval covers the variation over samples of pairs of the
    same kind, but not over training seeds. The same seed gives the same interval. Raises
    `ValueError` as in `spearman`, and for a `level` outside 0 to 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level {level} must lie between 0 and 1")
    tail = (1 - level) / 2
    values = bootstrap_spearman(scores, gold, resamples=resamples, seed=seed)
    low, high = np.quantile(values, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_spearman(
    scores: np.ndarray, gold: np.ndarray, *, resamples: int = 1000, seed: int | Sequence[int] = 0
) -> np.ndarray:
    """Returns Spearman's rho for `resamples` draws of pairs with replacement, [resamples] float64.

    The draws are a function of the seed and the number of pairs, so the values of two encoders can
    be subtracted draw by draw. Raises `ValueError` as in `spearman`, and for no resamples.
    """
    if resamples < 1:
        raise ValueError(f"resamples {resamples} must be above 0")
    scores, gold = _checked(scores, gold)
    n = len(scores)
    random = np.random.default_rng(seed)
    values = []
    chunk = max(1, 2**20 // n)  # bounds the [chunk, n] arrays to a few tens of megabytes
    for start in range(0, resamples, chunk):
        r = min(chunk, resamples - start)
        drawn = random.integers(n, size=(r, n)) + n * np.arange(r)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n)
        values.append(_counted_spearman(scores, gold, counts))
    return np.concatenate(values)


def _score(name: str, cosines: np.ndarray, gold: np.ndarray) -> StsScore:
    constant = [
        f"{name}: all {side} are equal"
        for side, values in (("cosines", cosines), ("scores", gold))
        if np.ptp(values) == 0
    ]
    for said in constant:
        logger.warning("%s: the correlation is undefined and counts as 0.", said)
    undefined = " and ".join(constant)
    return StsScore(spearman(cosines, gold), pearson(cosines, gold), len(gold), {}, undefined)


def _jaccard(one: str, two: str) -> float:
    a, b = (set(re.findall(r"\w+(?:'\w+)*", text.lower())) for text in (one, two))
    return len(a & b) / len(a | b) if a | b else 0.0


def _checked(scores: np.ndarray, gold: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scores, gold = np.asarray(scores, np.float64), np.asarray(gold, np.float64)
    if scores.ndim != 1 or scores.shape != gold.shape or len(scores) < 2:
        raise ValueError(f"two equally long lists of 2 or more: {scores.shape}, {gold.shape}")
    if not (np.isfinite(scores).all() and np.isfinite(gold).all()):
        raise ValueError("scores and gold must be finite")
    return scores, gold


def _counted_spearman(scores: np.ndarray, gold: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Spearman of the pairs, each repeated by `counts` [r, n], [r].

    A bootstrap resample is a list of counts. Its ranks follow from a running sum of the counts in
    the sorted order of all pairs, so one sort is enough for all resamples.
    """
    return _counted_correlation(
        _counted_ranks(scores, counts), _counted_ranks(gold, counts), counts
    )


def _counted_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    _, group = np.unique(values, return_inverse=True)  # equal values share a group, in value order
    order = np.argsort(group, kind="stable")
    starts = np.flatnonzero(np.diff(group[order], prepend=-1))
    totals = np.add.reduceat(counts[:, order], starts, axis=1)
    return (np.cumsum(totals, axis=1) - (totals - 1) / 2)[:, group]


def _counted_correlation(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    n = counts.sum(axis=1, keepdims=True)
    x = x - (counts * x).sum(axis=1, keepdims=True) / n
    y = y - (counts * y).sum(axis=1, keepdims=True) / n
    squares = (counts * x * x).sum(axis=1) * (counts * y * y).sum(axis=1)
    products = (counts * x * y).sum(axis=1)
    return np.divide(products, np.sqrt(squares), out=np.zeros_like(products), where=squares > 0)
