"""Hard negatives, against a slow loop and against sentence-transformers."""

from types import SimpleNamespace

import numpy as np
import pytest

from jtcse_jax.encoding.exact_index import ExactIndex
from jtcse_jax.encoding.index import make_index
from jtcse_jax.encoding.mining import REASONS, Guards, hard_negatives
from jtcse_jax.encoding.pair_texts import PairTexts
from jtcse_jax.errors import UserError

NONE = {"relative_margin": None}


def some_pairs(count=60, seed=0):
    """Anchors and positives in turn, some of both several times."""
    random = np.random.default_rng(seed)
    numbers = random.integers(count // 2, size=(count, 2)).tolist()
    return [text for a, p in numbers for text in (f"anchor {a}", f"text {p}")]


def vector_of(text: str) -> np.ndarray:
    """Any vector, the same for the same text; the cosine of two is mostly above 0."""
    return np.random.default_rng(list(text.encode())).normal(0.3, 1, 6).astype(np.float32)


def vectors_of(texts):
    return np.array([vector_of(text) for text in texts])


def mine(sentences, more, guards: Guards):
    """The triples, and the reason for each anchor without one."""
    texts = PairTexts(lambda: sentences, lambda: more)
    anchors = list(dict.fromkeys(sentences[::2]))
    corpus = list(dict.fromkeys([*sentences[1::2], *more]))
    assert (texts.num_anchors, texts.num_texts) == (len(anchors), len(corpus))
    anchor_vectors, corpus_vectors = vectors_of(anchors), vectors_of(corpus)
    index, numbers = ExactIndex.mapped(corpus_vectors), np.arange(len(anchors))
    mined = list(hard_negatives(index, texts, numbers, anchor_vectors, corpus_vectors, guards))
    triples = [
        (anchors[anchor], corpus[positive], corpus[negative])
        for anchor, positive in texts.pairs.tolist()
        for negative in mined[anchor].numbers.tolist()
    ]
    return triples, [one.reason for one in mined]


def slowly(sentences, corpus, guards):
    """The triples, pair by pair."""
    pairs = list(zip(sentences[::2], sentences[1::2], strict=True))
    corpus = sorted({*sentences[1::2], *corpus})

    def cosine(a, b):
        a, b = vector_of(a), vector_of(b)
        return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))

    triples = []
    for anchor, positive in pairs:
        own = {p for a, p in pairs if a == anchor}
        least = min(cosine(anchor, p) for p in own)
        others = sorted(
            (text for text in corpus if text not in own and text != anchor),
            key=lambda text: -cosine(anchor, text),
        )[: guards.range_max]
        if guards.max_score is not None:
            others = [t for t in others if cosine(anchor, t) <= guards.max_score]
        if guards.absolute_margin is not None:
            others = [t for t in others if cosine(anchor, t) <= least - guards.absolute_margin]
        if guards.relative_margin is not None:
            highest = least - abs(least) * guards.relative_margin
            others = [t for t in others if cosine(anchor, t) <= highest]
        chosen = others[guards.range_min :][: guards.num_negatives]
        triples += [(anchor, positive, negative) for negative in chosen]
    return triples


GUARDS = [
    {},
    NONE,
    {"num_negatives": 3, **NONE},
    {"range_min": 2, "range_max": 5, "num_negatives": 2, **NONE},
    {"range_max": 7, "max_score": 0.5, "num_negatives": 4, **NONE},
    {"absolute_margin": 0.2, "num_negatives": 2, **NONE},
    {"relative_margin": 0.3, "range_min": 1, "num_negatives": 2},
    {"relative_margin": 0.1, "absolute_margin": 0.05, "max_score": 0.3, "num_negatives": 5},
]


@pytest.mark.parametrize("options", GUARDS, ids=str)
def test_negatives_are_those_of_a_slow_loop(options):
    sentences = some_pairs()
    sentences[:2] = "text 3", "text 7"  # an anchor that is another one's positive
    more = ["text 5", "more 1", "more 2", "anchor 4"]
    guards = Guards(**options)
    expected = slowly(sentences, more, guards)
    triples, _ = mine(sentences, more, guards)
    assert triples == expected
    assert len(set(expected)) > 20


@pytest.mark.parametrize("options", GUARDS, ids=str)
def test_negatives_are_those_of_sentence_transformers(options):
    util = pytest.importorskip("sentence_transformers.util", reason="is not installed")
    datasets = pytest.importorskip("datasets", reason="is not installed")
    model = SimpleNamespace(
        device="cpu",
        encode_document=lambda texts, **_: vectors_of(texts),
        encode_query=lambda texts, **_: vectors_of(texts),
        similarity=util.cos_sim,
        similarity_pairwise=util.pairwise_cos_sim,
    )
    sentences, more = some_pairs(seed=1), ["more 1", "more 2"]
    # It looks at a few more texts than range_max if an anchor's positives are far from it.
    if {"max_score", "absolute_margin", "relative_margin"} & {n for n, v in options.items() if v}:
        options = options | {"range_max": 100}
    guards = Guards(**options)
    pairs = {"anchor": sentences[::2], "positive": sentences[1::2]}
    expected = util.mine_hard_negatives(
        datasets.Dataset.from_dict(pairs), model, corpus=more, verbose=False, **vars(guards)
    )
    triples, _ = mine(sentences, more, guards)
    assert set(triples) == set(zip(*expected.to_dict().values(), strict=True))
    assert len(set(triples)) > 20


def test_neither_positives_nor_the_anchor_itself_are_negatives():
    sentences = ["a", "b", "a", "c", "b", "a", "c", "d"]
    triples, _ = mine(sentences, [], Guards(num_negatives=9, range_max=9, **NONE))
    assert sorted(set(triples)) == [
        *(("a", "b", "d"), ("a", "c", "d")),
        *(("b", "a", "c"), ("b", "a", "d")),
        *(("c", "d", "a"), ("c", "d", "b")),
    ]


def at(degrees: float) -> np.ndarray:
    radians = np.radians(degrees)
    return np.array([np.cos(radians), np.sin(radians)], np.float32)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"max_score": 0.6, **NONE}, "max_score"),
        ({"absolute_margin": 0.2, **NONE}, "absolute_margin"),
        ({"relative_margin": 0.5}, "relative_margin"),
        ({"range_min": 1, **NONE}, "range_min"),
        ({"max_score": 0.1, "absolute_margin": 2, "range_min": 3}, "max_score"),
        (NONE, None),
    ],
)
def test_reason_is_the_guard_that_refused_the_last_text(options, reason):
    """An anchor at 0 degrees, its positive at 30 and one other text at 40."""
    texts = PairTexts(lambda: ["anchor", "positive"], lambda: ["other"])
    corpus = np.array([at(30), at(40)])
    index = make_index("exact", 2)
    index.add(corpus)
    guards = Guards(**options)
    (mined,) = hard_negatives(index, texts, np.array([0]), at(0)[None], corpus, guards)
    assert mined.reason == reason
    assert mined.numbers.tolist() == ([] if reason else [1])
    assert reason is None or reason in REASONS


def test_no_other_text_is_a_reason():
    assert mine(["a", "b", "b", "b"], [], Guards(**NONE)) == ([], ["no other text"] * 2)


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"range_min": -1}, "--range-min -1"),
        ({"num_negatives": 0}, "--num-negatives 0"),
        ({"range_min": 99, "num_negatives": 2}, "--range-max 100"),
        ({"absolute_margin": -0.1}, "--absolute-margin -0.1"),
        ({"relative_margin": float("nan")}, "--relative-margin nan"),
    ],
)
def test_guards_out_of_range_are_refused(options, field):
    with pytest.raises(UserError, match=field):
        Guards(**options)
