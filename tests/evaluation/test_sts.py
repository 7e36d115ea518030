"""Similarity scores, correlations and intervals, against scipy, slow loops and hand computation."""

import numpy as np
import pytest
from scipy import stats
from tiny_models import cosine_scores

from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.sts import (
    Pairs,
    StsTask,
    bootstrap_interval,
    evaluate_sts,
    pearson,
    spearman,
    word_overlap,
)


def slow_spearman(x, y) -> float:
    """Mean ranks by counting smaller and equal values, then the textbook correlation."""

    def ranks(values):
        return [
            sum(v < value for v in values) + (sum(v == value for v in values) + 1) / 2
            for value in values
        ]

    a, b = ranks(x), ranks(y)
    mean = (len(x) + 1) / 2
    covariance = sum((p - mean) * (q - mean) for p, q in zip(a, b, strict=True))
    return covariance / (sum((p - mean) ** 2 for p in a) * sum((q - mean) ** 2 for q in b)) ** 0.5


@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_spearman_and_pearson_agree_with_scipy_and_a_slow_loop(levels):
    random = np.random.default_rng(levels)
    for n in (2, 3, 10, 61):
        gold = random.integers(levels, size=n).astype(float)
        gold[:2] = 0, 1  # not constant
        scores = np.round(gold + random.normal(size=n), 1)  # rounded: ties on this side too
        scores[0] = scores[1] + 0.5
        rho = spearman(scores, gold)
        assert rho == pytest.approx(slow_spearman(scores, gold), abs=1e-12)
        assert rho == pytest.approx(stats.spearmanr(scores, gold).statistic, abs=1e-12)
        assert pearson(scores, gold) == pytest.approx(stats.pearsonr(scores, gold)[0], abs=1e-12)


def test_spearman_sees_order_alone():
    gold = np.array([0.0, 1.0, 2.5, 4.0])
    assert spearman(np.exp(gold * 9), gold) == pytest.approx(1.0)
    assert spearman(-gold, gold) == pytest.approx(-1.0)
    assert pearson(np.exp(gold * 9), gold) < 0.9


def test_a_constant_side_counts_as_no_correlation():
    gold = np.arange(7.0)
    for constant in (np.full(7, 0.1), np.zeros(7)):
        assert spearman(constant, gold) == 0.0 == spearman(gold, constant)
        assert pearson(constant, gold) == 0.0 == pearson(gold, constant)
        assert bootstrap_interval(constant, gold, resamples=20) == (0.0, 0.0)


@pytest.mark.parametrize("score", [spearman, pearson, bootstrap_interval])
def test_unusable_scores_are_refused(score):
    for scores, gold in ([[1.0], [1.0]], [[1.0, 2.0], [1.0, 2.0, 3.0]], [[1.0, np.nan], [1.0, 2]]):
        with pytest.raises(ValueError):
            score(np.array(scores), np.array(gold))


@pytest.mark.parametrize(("n", "resamples"), [(40, 200), (30_000, 40)])  # the second in two chunks
def test_bootstrap_equals_resampling_in_a_loop(n, resamples):
    random = np.random.default_rng(1)
    gold = random.integers(6, size=n) / 1.0
    scores = np.round(gold + 2 * random.normal(size=n), 1)
    draws = np.random.default_rng(7)
    values = []
    for _ in range(resamples):
        drawn = draws.integers(n, size=n)
        values.append(stats.spearmanr(scores[drawn], gold[drawn]).statistic)
    expected = np.quantile(values, [0.05, 0.95])
    found = bootstrap_interval(scores, gold, level=0.9, resamples=resamples, seed=7)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_bootstrap_interval_covers_the_true_correlation():
    random = np.random.default_rng(3)
    r = 0.7
    true = 6 / np.pi * np.arcsin(r / 2)  # Spearman of a bivariate normal with correlation r
    covered = 0
    for seed in range(200):
        x = random.normal(size=120)
        y = r * x + np.sqrt(1 - r**2) * random.normal(size=120)
        low, high = bootstrap_interval(x, y, resamples=200, seed=seed)
        assert low < spearman(x, y) < high
        covered += low <= true <= high
    assert 0.88 <= covered / 200 <= 0.99  # 95 % asked; three standard errors are 5 %


def test_bootstrap_interval_repeats_and_widens_with_level():
    random = np.random.default_rng(5)
    gold = random.normal(size=100)
    scores = gold + random.normal(size=100)
    low, high = bootstrap_interval(scores, gold)
    assert (low, high) == bootstrap_interval(scores, gold, seed=0)
    assert (low, high) != bootstrap_interval(scores, gold, seed=1)
    wider = bootstrap_interval(scores, gold, level=0.999)
    assert wider[0] < low < high < wider[1]
    for wrong in ({"level": 95}, {"level": 0}, {"resamples": 0}):
        with pytest.raises(ValueError):
            bootstrap_interval(scores, gold, **wrong)


class Encoder:
    """Embeds by a table and keeps what it was asked."""

    def __init__(self, table: dict[str, list[float]], dtype=np.float32):
        self.table, self.dtype, self.calls = table, dtype, []

    def __call__(self, sentences: list[str]) -> np.ndarray:
        self.calls.append(sentences)
        return np.array([self.table[s] for s in sentences], self.dtype)


def test_each_sentence_of_pairs_is_encoded_once():
    encoder = Encoder({"a": [1, 0], "b": [0, 2], "c": [3, 3], "d": [-2, 0], "z": [0, 0]})
    pairs = Pairs(list("aacaz"), list("abadc"), np.arange(5.0))
    scores = cosine_scores(encoder, pairs)
    np.testing.assert_allclose(scores, [1, 0, 0.5**0.5, -1, 0], rtol=0, atol=1e-12)
    assert scores.dtype == np.float64
    assert len(encoder.calls) == 1 and sorted(encoder.calls[0]) == list("abcdz")


def test_cosines_are_taken_in_float64():
    encoder = Encoder({"a": [1, 0], "b": [1, 2**-13], "c": [1, 2**-14]})
    scores = cosine_scores(encoder, Pairs(["a", "a"], ["b", "c"], np.array([0.0, 1.0])))
    assert scores[0] < scores[1]  # 1 - 2^-27 and 1 - 2^-29: both are 1 in float32


def test_a_collapsed_encoder_scores_nothing():
    table = {s: [0.1, 1 / 3, -0.7] for s in "abcdef"}
    pairs = Pairs(list("abcd"), list("bcde"), np.arange(4.0))
    scores = cosine_scores(Encoder(table), pairs)
    np.testing.assert_allclose(scores, 1)
    assert spearman(scores, pairs.gold) == 0.0


def test_embeddings_that_are_no_numbers_are_refused():
    pairs = Pairs(["a"], ["b"], np.zeros(1))
    with pytest.raises(UserError, match="1 of 2 sentences are not finite .first: 'b'"):
        cosine_scores(Encoder({"a": [1, 0], "b": [np.inf, 0]}), pairs)
    for wrong in (np.zeros(2), np.zeros((3, 4)), np.zeros((2, 1, 4))):
        with pytest.raises(ValueError, match="2 sentences"):
            cosine_scores(lambda sentences, wrong=wrong: wrong, pairs)


def test_evaluate_sts_correlates_over_all_subsets_together():
    # Embeddings on the unit circle: with "0" the cosine is the one asked for.
    table = {str(c): [c, np.sqrt(1 - c**2)] for c in np.arange(10) / 10} | {"0": [1, 0]}
    encoder = Encoder(table, np.float64)

    def against_zero(cosines: list[float], gold: list[float]) -> Pairs:
        return Pairs(["0"] * len(cosines), [str(c) for c in cosines], np.array(gold))

    low = against_zero([0.5, 0.6, 0.9], [0.0, 1.0, 2.0])
    high = against_zero([0.1, 0.2, 0.3], [3.0, 4.0, 5.0])
    mixed = StsTask("mixed", {"low": low, "high": high})
    plain = StsTask("plain", {"test": against_zero([0.2, 0.4, 0.6, 0.8], [0.0, 2.0, 1.0, 3.0])})
    exact = StsTask("exact", {"test": against_zero([0.7, 0.8, 0.9], [1.0, 2.0, 3.0])})
    result = evaluate_sts(encoder, [mixed, plain, exact])

    cosines, gold = [0.5, 0.6, 0.9, 0.1, 0.2, 0.3], [0, 1, 2, 3, 4, 5]
    assert list(result) == ["mixed", "plain", "exact", "average"]
    assert result["mixed"].spearman == pytest.approx(slow_spearman(cosines, gold))
    assert result["mixed"].spearman < 0  # each subset alone would give 1
    assert result["mixed"].pearson == pytest.approx(np.corrcoef(cosines, gold)[0, 1])
    assert result["plain"].spearman == pytest.approx(0.8)
    assert result["exact"].spearman == pytest.approx(1)
    *tasks, average = result.values()
    assert average.spearman == pytest.approx(sum(score.spearman for score in tasks) / 3)
    assert average.pearson == pytest.approx(sum(score.pearson for score in tasks) / 3)
    assert [score.pairs for score in result.values()] == [6, 4, 3, 13]
    assert len(encoder.calls) == 1
    assert len(encoder.calls[0]) == len(set(encoder.calls[0])) == 10


def test_word_overlap_is_the_jaccard_index_of_words():
    pairs = Pairs(
        ["The cat, the dog.", "Don't go!", "a b", "...", "same SAME"],
        ["the DOG ran", "don t go", "c", "?", "Same"],
        np.arange(5.0),
    )
    np.testing.assert_allclose(word_overlap(pairs), [2 / 4, 1 / 4, 0, 0, 1])
