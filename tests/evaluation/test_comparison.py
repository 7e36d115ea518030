"""Differences between encoders, against resampling in a loop."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from jtcse_jax.evaluation.comparison import sts_differences, sts_intervals


def noisy(gold, noise, seed):
    return gold + noise * np.random.default_rng(seed).normal(size=len(gold))


def test_differences_equal_resampling_seeds_and_pairs_in_a_loop():
    random = np.random.default_rng(3)
    gold = {"a": random.integers(6, size=90) / 1.0, "b": random.integers(6, size=60) / 1.0}
    method = [{task: noisy(g, 1.0, 10 + s) for task, g in gold.items()} for s in range(3)]
    reference = [{task: noisy(g, 2.0, 20 + s) for task, g in gold.items()} for s in range(3)]
    found = sts_differences(method, reference, gold, resamples=1500)

    def rho(encoders, task, pairs, seeds):
        chosen = [encoders[seed][task][pairs] for seed in seeds]
        return np.mean([spearmanr(cosines, gold[task][pairs]).statistic for cosines in chosen])

    values = {task: [] for task in gold}
    for _ in range(600):
        seeds = random.integers(3, size=3)
        for task, g in gold.items():
            pairs = random.integers(len(g), size=len(g))
            values[task].append(
                rho(method, task, pairs, seeds) - rho(reference, task, pairs, seeds)
            )
    values["average"] = np.mean([values["a"], values["b"]], axis=0)
    for task, drawn in values.items():
        low, high = np.quantile(drawn, [0.025, 0.975])
        # Two Monte Carlo estimates of one interval: a tenth of its width apart at most.
        assert found[task].low == pytest.approx(low, abs=0.12 * (high - low))
        assert found[task].high == pytest.approx(high, abs=0.12 * (high - low))
    means = [
        rho(method, task, slice(None), range(3)) - rho(reference, task, slice(None), range(3))
        for task in gold
    ]
    assert [found["a"].mean, found["b"].mean] == pytest.approx(means)
    assert found["average"].mean == pytest.approx(np.mean(means))


def test_intervals_equal_resampling_in_a_loop():
    random = np.random.default_rng(4)
    gold = {"a": random.integers(6, size=90) / 1.0, "b": random.integers(6, size=60) / 1.0}
    cosines = {task: noisy(g, 1.0, 30) for task, g in gold.items()}
    values = {task: [] for task in gold}
    for _ in range(800):
        for task, g in gold.items():
            pairs = random.integers(len(g), size=len(g))
            values[task].append(spearmanr(cosines[task][pairs], g[pairs]).statistic)
    values["average"] = np.mean([values["a"], values["b"]], axis=0)
    found = sts_intervals(cosines, gold, resamples=1500)
    assert found.keys() == values.keys()
    for task, drawn in values.items():
        low, high = np.quantile(drawn, [0.025, 0.975])
        np.testing.assert_allclose(found[task], (low, high), atol=0.12 * (high - low))


def test_pairing_makes_the_interval_of_near_twins_small():
    gold = {"a": np.random.default_rng(0).integers(6, size=200) / 1.0}
    one = {"a": noisy(gold["a"], 2.0, 1)}
    twin = {"a": one["a"] + noisy(np.zeros(200), 0.05, 2)}
    other = {"a": noisy(gold["a"], 2.0, 3)}
    near = sts_differences([twin], [one], gold)["a"]
    far = sts_differences([other], [one], gold)["a"]
    assert near.high - near.low < (far.high - far.low) / 5
    same = sts_differences([one], [one], gold)["a"]
    assert (same.mean, same.low, same.high) == (0, 0, 0)


def test_methods_may_have_different_numbers_of_seeds():
    gold = {"a": np.random.default_rng(0).integers(6, size=200) / 1.0}
    seeds = [{"a": noisy(gold["a"], noise, 1)} for noise in (1.0, 3.0)]
    one = [{"a": noisy(gold["a"], 2.0, 1)}]
    found = sts_differences(seeds, one, gold)["a"]
    assert found.low < found.mean < found.high
    assert sts_differences(one, seeds, gold)["a"].mean == pytest.approx(-found.mean)
