"""Every diagnostic against loops over single vectors, sentences and tokens."""

import itertools
import json
import math

import numpy as np
import pytest
from scipy.stats import rankdata
from tiny_models import some_sentences, tiny_model, write_run

from jtcse_jax import evaluate
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation import development, diagnostics
from jtcse_jax.evaluation.development import Development
from jtcse_jax.evaluation.diagnostics import (
    alignment,
    anisotropy,
    attention_mass,
    diagnose_embeddings,
    e_cls,
    effective_rank,
    embed_pairs,
    high_pairs,
    modulus_difference,
    modulus_ratio,
    partial_spearman,
    singular_values,
    summary,
    uniformity,
)
from jtcse_jax.evaluation.sts import Pairs

# Neither centred nor of one length or one scale.
VECTORS = np.random.default_rng(0).normal(0.4, np.linspace(0.2, 2, 7), (30, 7)).astype(np.float32)


def cosine(a, b):
    return sum(a * b) / math.sqrt(sum(a * a) * sum(b * b))


def squared_distance(a, b):
    a, b = a / math.sqrt(sum(a * a)), b / math.sqrt(sum(b * b))
    return sum((a - b) ** 2)


def some_pairs(count=40):
    """Pairs of sentences, some of them in several pairs, and an encoder of them."""
    random = np.random.default_rng(count)
    sentences = ["x" * length for length in random.permutation(np.arange(1, count + 1))]
    first, second = (random.choice(sentences, count).tolist() for _ in range(2))
    vectors = random.normal(0.2, 1, (count + 1, 6))

    def encode(asked):
        return np.stack([vectors[len(sentence)] for sentence in asked])

    return Pairs(first, second, random.integers(0, 11, count) / 2), encode


def test_alignment_uniformity_and_anisotropy_are_means_over_single_pairs():
    pairs = list(itertools.combinations(VECTORS.astype(np.float64), 2))
    potential = [math.exp(-2 * squared_distance(a, b)) for a, b in pairs]
    assert uniformity(VECTORS) == pytest.approx(math.log(np.mean(potential)), rel=1e-6)
    assert anisotropy(VECTORS) == pytest.approx(np.mean([cosine(a, b) for a, b in pairs]), rel=1e-6)
    distances = [squared_distance(a, b) for a, b in zip(VECTORS[:15], VECTORS[15:], strict=True)]
    assert alignment(VECTORS[:15], VECTORS[15:]) == pytest.approx(np.mean(distances), rel=1e-5)


@pytest.mark.parametrize("count", [30, 5])  # more and fewer vectors than components
def test_spectrum_is_that_of_the_centred_vectors(count):
    x = VECTORS[:count].astype(np.float64)
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    share = values / values.sum()
    np.testing.assert_allclose(singular_values(x), share, atol=1e-7)
    entropy = -sum(p * math.log(p) for p in share if p > 1e-12)
    assert effective_rank(x) == pytest.approx(math.exp(entropy), rel=1e-5)


def test_known_values_of_extreme_embeddings():
    corners = np.concatenate([np.eye(4), -np.eye(4)])  # four directions, equally used
    assert effective_rank(corners) == pytest.approx(4)
    assert anisotropy(corners) == pytest.approx(-1 / 7)
    same = np.ones((5, 3))
    assert effective_rank(same) == 1 and not singular_values(same).any()
    assert uniformity(same) == pytest.approx(0) and anisotropy(same) == pytest.approx(1)
    assert alignment(np.eye(2), -2 * np.eye(2)) == pytest.approx(4)
    zeros = np.zeros((3, 4))
    assert anisotropy(zeros) == 0 and math.isfinite(uniformity(zeros))
    for figure in (uniformity, anisotropy):
        with pytest.raises(ValueError, match="two vectors or more"):
            figure(np.ones((1, 3)))
    with pytest.raises(ValueError, match="one or more pairs"):
        alignment(np.ones((0, 3)), np.ones((0, 3)))


def test_partial_spearman_correlates_what_a_straight_line_leaves_of_the_ranks():
    random = np.random.default_rng(1)
    given = random.integers(0, 6, 200).astype(float)
    x, y = given + random.normal(0, 2, 200), -given + random.normal(0, 2, 200)

    def rest(values):
        line = np.polyfit(rankdata(given), rankdata(values), 1)
        return rankdata(values) - np.polyval(line, rankdata(given))

    expected = np.corrcoef(rest(x), rest(y))[0, 1]
    assert partial_spearman(x, y, given) == pytest.approx(expected)
    assert abs(expected) < 0.5 * abs(np.corrcoef(rankdata(x), rankdata(y))[0, 1])
    assert partial_spearman(x, np.ones(200), given) == 0
    assert partial_spearman(x, 3 * given, given) == 0


def test_positive_pairs_are_the_top_fifth_of_the_scale():
    assert high_pairs(np.array([0, 4, 4.2, 5])).tolist() == [False, False, True, True]
    assert high_pairs(np.array([-1, 0, 1.0])).tolist() == [False, False, True]


@pytest.fixture
def sentences():
    """Three padded sentences of 5, 2 and 4 tokens: mask, hidden states, attention."""
    random = np.random.default_rng(2)
    mask = np.arange(5) < np.array([5, 2, 4])[:, None]
    hidden = random.normal(size=(2, 3, 5, 6)).astype(np.float32)
    scores = random.exponential(size=(2, 3, 4, 5, 5)) * mask[:, None, None]
    return mask, hidden, scores / scores.sum(axis=-1, keepdims=True)


def test_e_cls_compares_the_first_token_with_the_others_of_its_sentence(sentences):
    mask, hidden, _ = sentences
    ratios = e_cls(hidden, mask)
    assert ratios.shape == (2, 3)
    for layer, sentence in np.ndindex(2, 3):
        norms = [
            math.sqrt(sum(state.astype(float) ** 2))
            for state, real in zip(hidden[layer, sentence], mask[sentence], strict=True)
            if real
        ]
        expected = norms[0] / (sum(norms[1:]) / len(norms[1:]))
        assert ratios[layer, sentence] == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="no others"):
        e_cls(hidden, np.eye(3, 5, dtype=bool))


def test_attention_mass_is_a_mean_over_the_queries_that_exist(sentences):
    mask, _, attention = sentences
    keys = {"some": np.array([[1, 0, 1, 0, 0], [0, 1, 0, 0, 0], [0, 0, 0, 0, 0]], bool)}
    mass = attention_mass(attention, mask, keys | {"all": mask})
    np.testing.assert_allclose(mass["all"], 1)
    for layer, sentence, head in np.ndindex(2, 3, 4):
        queries = np.flatnonzero(mask[sentence])
        chosen = np.flatnonzero(keys["some"][sentence])
        total = sum(attention[layer, sentence, head, q, k] for q in queries for k in chosen)
        assert mass["some"][layer, sentence, head] == pytest.approx(total / len(queries))


def test_modulus_of_two_views():
    one, two = VECTORS[:15], VECTORS[15:]
    norms = [(np.sqrt(sum(a * a)), np.sqrt(sum(b * b))) for a, b in zip(one, two, strict=True)]
    np.testing.assert_allclose(
        modulus_ratio(one, two), [min(pair) / max(pair) for pair in norms], rtol=1e-5
    )
    apart = [np.sqrt(sum((a - b) ** 2)) for a, b in zip(one, two, strict=True)]
    expected = [d / sum(pair) for d, pair in zip(apart, norms, strict=True)]
    np.testing.assert_allclose(modulus_difference(one, two), expected, rtol=1e-5)
    assert modulus_ratio(np.zeros(3), np.zeros(3)) == 1
    assert modulus_difference(np.zeros(3), np.zeros(3)) == 0


def test_summary_takes_every_sentence_once_and_pairs_as_they_stand():
    pairs, encode = some_pairs()
    asked = []
    found = summary(
        embed_pairs(lambda sentences: asked.append(sentences) or encode(sentences), pairs),
        most=99,
    )
    distinct = list(dict.fromkeys(pairs.first + pairs.second))
    assert len(asked) == 1 and sorted(asked[0]) == sorted(distinct)
    vectors = encode(distinct)
    high = [i for i in range(40) if pairs.gold[i] > 4]
    positives = [encode([side[i] for i in high]) for side in (pairs.first, pairs.second)]
    cosines = [
        cosine(*encode([one, two])) for one, two in zip(pairs.first, pairs.second, strict=True)
    ]
    apart = [abs(len(one) - len(two)) for one, two in zip(pairs.first, pairs.second, strict=True)]
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert found == pytest.approx(
        {
            "uniformity": uniformity(vectors),
            "alignment": alignment(*positives),
            "effective_rank": effective_rank(unit),
            "anisotropy": anisotropy(vectors),
            "mean_norm": np.mean([math.sqrt(sum(x * x)) for x in vectors]),
            "length_correlation": np.corrcoef(rankdata(cosines), rankdata(apart))[0, 1],
            "length_correlation_given_gold": partial_spearman(
                np.array(cosines), np.array(apart, float), pairs.gold
            ),
        }
    )


def test_an_encoder_of_nothing_but_length_has_the_bias_in_full():
    pairs, _ = some_pairs()

    def encode(sentences):
        angles = np.array([len(sentence) for sentence in sentences]) / 50
        return np.stack([np.cos(angles), np.sin(angles)], axis=1)

    found = summary(embed_pairs(encode, pairs), most=99)
    # But for equal differences, whose cosines differ in the last digit.
    assert found["length_correlation"] == pytest.approx(-1, abs=0.01)
    assert found["length_correlation_given_gold"] == pytest.approx(-1, abs=0.01)


def test_a_bound_takes_sentences_from_all_over():
    pairs, encode = some_pairs()
    embedded = embed_pairs(encode, pairs)
    whole, part = summary(embedded, most=99), summary(embedded, most=10)
    spaced = embedded.vectors[[len(embedded.vectors) * i // 10 for i in range(10)]]
    assert part["anisotropy"] == pytest.approx(anisotropy(spaced))
    assert {name for name in whole if whole[name] != part[name]} == {
        "uniformity",
        "effective_rank",
        "anisotropy",
    }
    assert summary(embedded, most=1000) == whole


def test_diagnosis_of_any_encoder_is_json(monkeypatch):
    pairs, encode = some_pairs()
    found = json.loads(json.dumps(diagnose_embeddings(embed_pairs(encode, pairs)), allow_nan=False))
    assert len(found["spectrum"]) == 6 and sum(found["spectrum"]) == pytest.approx(1, abs=1e-5)
    assert found["pairs"] == 40 and found["width"] == 6
    assert found["uniformity"] == round(
        summary(embed_pairs(encode, pairs), most=99)["uniformity"], 4
    )
    many, _ = some_pairs(200)
    normal = np.random.default_rng(0).normal
    wide = diagnose_embeddings(embed_pairs(lambda asked: normal(size=(len(asked), 99)), many))
    assert len(wide["spectrum"]) == diagnostics.SPECTRUM == 64
    monkeypatch.setattr(diagnostics, "COMPARED", 10)
    part = diagnose_embeddings(embed_pairs(encode, pairs))
    assert part["compared"] == 10 < part["sentences"] == found["compared"]
    assert part["anisotropy"] == round(
        summary(embed_pairs(encode, pairs), most=10)["anisotropy"], 4
    )
    assert part["spectrum"] != found["spectrum"]


@pytest.mark.parametrize(
    ("first", "second", "gold", "message"),
    [
        (["a"], ["b"], [1.0], "two or more"),
        (["a", "c"], ["b", "d"], [2.0, 2.0], "every pair has the score 2"),
        (["a", "a"], ["a", "a"], [1.0, 2.0], "one and the same sentence"),
        (["a", "xx"], ["b", "c"], [1.0, 2.0], "not finite"),
    ],
)
def test_pairs_that_tell_nothing_are_refused(first, second, gold, message):
    def encode(sentences):
        return np.array([[1.0, 2.0] if len(text) == 1 else [np.nan, 1] for text in sentences])

    with pytest.raises(UserError, match=message):
        embed_pairs(encode, Pairs(first, second, np.array(gold)))


def test_development_score_carries_the_cheap_figures():
    dev = Development("builtin")

    def encode(sentences):
        return np.stack(
            [np.bincount(np.frombuffer(s.encode(), "u1"), minlength=256) for s in sentences]
        )

    score = dev.score(encode)
    expected = summary(embed_pairs(encode, dev.pairs), most=development.WATCHED)
    assert score.diagnostics == {f"dev_{name}": value for name, value in expected.items()}
    assert set(score.as_metrics()) == {"dev_spearman", "dev_low", "dev_high"}
    assert dev.word_overlap().diagnostics == {}


def test_diagnostics_of_a_text_need_no_scores(command, refused, tmp_path, capsys, monkeypatch):
    run = write_run(tmp_path / "run", tiny_model(2), {2: 0.6})
    sentences = list(dict.fromkeys(some_sentences(30)))[:20]
    (tmp_path / "text.csv").write_text("n,said\n" + "".join(f"1,{one}\n" for one in sentences))
    text = ("--text", tmp_path / "text.csv", "--text-columns", "said")
    monkeypatch.setattr(development, "COLLAPSED", -1.0)
    command(evaluate, "--model", run, *text, "--output", tmp_path / "d.json")
    found = json.loads((tmp_path / "d.json").read_text())["diagnostics"]
    vectors = SentenceEncoder.load(run).encode(sentences)
    vectors = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    cosines = [x @ y for i, x in enumerate(vectors) for y in vectors[:i]]
    assert found["embeddings"]["anisotropy"] == pytest.approx(np.mean(cosines), abs=1e-4)
    assert "alignment" not in found["embeddings"] and found["embeddings"]["pairs"] == 0
    assert "20 sentences of" in found["protocol"]
    said = capsys.readouterr()
    assert "anisotropy" in said.out and "has collapsed" in said.err
    assert "--text" in refused(evaluate, "--model", run, *text, "--dev", "builtin")
    assert "--text-columns" in refused(evaluate, "--model", run, "--dev", "builtin", *text[2:])
    (tmp_path / "one.txt").write_text("the cat\nthe cat\n")
    assert "one.txt" in refused(evaluate, "--model", run, "--text", tmp_path / "one.txt")
