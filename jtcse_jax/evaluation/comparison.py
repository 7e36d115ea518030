"""Differences between encoders on STS, with their uncertainty over seeds and over scored pairs."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from jtcse_jax.evaluation.sts import bootstrap_spearman, spearman

# Cosines of each task's pairs, by task, for one encoder.
Cosines = Mapping[str, np.ndarray]


class Difference(NamedTuple):
    """How much higher a method scores than a reference, with a 95 % interval."""

    mean: float
    low: float
    high: float

    def __str__(self) -> str:
        mean, low, high = (100 * value for value in self)
        noise = "" if low > 0 or high < 0 else ", within noise"
        return f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]{noise}"


def sts_differences(
    method: Sequence[Cosines],
    reference: Sequence[Cosines],
    gold: Mapping[str, np.ndarray],
    *,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Difference]:
    """Returns the differences in Spearman's rho (raw), by task, and of the mean over the tasks.

    The interval is the percentiles of a paired bootstrap. Each draw takes pairs of every task with
    replacement, the same for both sides, and seeds too if a method has several. If both sides have
    equally many seeds, the i-th ones belong together (they started from the same towers) and are
    drawn together; otherwise each side draws its own. Few seeds give a rough interval.

    Args:
      method: encoders of the method, one per seed.
      reference: encoders to compare with.
      gold: human scores of each task's pairs.
      resamples: number of draws.
      seed: seed of the draws.
    """
    random = np.random.default_rng([seed, 0])  # separate: pairs are drawn by [seed, 1 + task]
    drawn = random.integers(len(method), size=(resamples, len(method)))
    if len(reference) == len(method):
        drawn_reference = drawn
    else:
        drawn_reference = random.integers(len(reference), size=(resamples, len(reference)))
    found, means, all_values = {}, [], []
    for number, (task, scores) in enumerate(gold.items()):
        mean = _mean_rho(method, task, scores) - _mean_rho(reference, task, scores)
        options = {"resamples": resamples, "seed": [seed, 1 + number]}
        values = _drawn_rho(method, task, scores, drawn, **options)
        values = values - _drawn_rho(reference, task, scores, drawn_reference, **options)
        found[task] = _difference(mean, values)
        means.append(mean)
        all_values.append(values)
    found["average"] = _difference(float(np.mean(means)), np.mean(all_values, axis=0))
    return found


def sts_intervals(
    cosines: Cosines, gold: Mapping[str, np.ndarray], *, resamples: int = 1000, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """Returns the 95 % interval of Spearman's rho (raw), by task and of the mean over the tasks.

    It is the percentiles of a bootstrap over the pairs of each task.
    """
    drawn = {
        task: bootstrap_spearman(cosines[task], scores, resamples=resamples, seed=[seed, 1 + n])
        for n, (task, scores) in enumerate(gold.items())
    }
    drawn["average"] = np.mean(list(drawn.values()), axis=0)
    return {task: _middle(values) for task, values in drawn.items()}


def _mean_rho(encoders: Sequence[Cosines], task: str, gold: np.ndarray) -> float:
    return float(np.mean([spearman(encoder[task], gold) for encoder in encoders]))


def _drawn_rho(
    encoders: Sequence[Cosines],
    task: str,
    gold: np.ndarray,
    drawn: np.ndarray,
    *,
    resamples: int,
    seed: Sequence[int],
) -> np.ndarray:
    """Mean rho of the drawn encoders on the drawn pairs, [resamples]."""
    values = np.stack(
        [
            bootstrap_spearman(encoder[task], gold, resamples=resamples, seed=seed)
            for encoder in encoders
        ]
    )
    return values[drawn, np.arange(resamples)[:, None]].mean(axis=1)


def _difference(mean: float, values: np.ndarray) -> Difference:
    return Difference(mean, *_middle(values))


def _middle(values: np.ndarray) -> tuple[float, float]:
    """The bounds between which 95 % of the values lie."""
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
