"""The numbers of the texts of pairs, against dictionaries."""

import tracemalloc

import numpy as np
import pytest

from jtcse_jax.encoding.pair_texts import PairTexts
from jtcse_jax.errors import UserError

WORDS = ["", "a", "the cat", "द्वि", "the dog", "b\x00", "b", "night"]


def some_texts(count, seed):
    random = np.random.default_rng(seed)
    return [
        WORDS[number % 8] + str(number // 8) for number in random.integers(40, size=count).tolist()
    ]


@pytest.mark.parametrize("seed", range(4))
def test_numbers_are_those_of_dictionaries(tmp_path, seed):
    sentences, more = some_texts(100, seed), some_texts(30 * (seed > 0), seed + 9)
    texts = PairTexts(lambda: sentences, lambda: more)
    anchors = list(dict.fromkeys(sentences[::2]))
    corpus = list(dict.fromkeys([*sentences[1::2], *more]))
    expected = [
        [anchors.index(anchor), corpus.index(positive)]
        for anchor, positive in zip(sentences[::2], sentences[1::2], strict=True)
    ]
    assert texts.pairs.tolist() == expected
    assert (texts.num_anchors, texts.num_texts) == (len(anchors), len(corpus))
    for number, anchor in enumerate(anchors):
        own = {p for a, p in zip(sentences[::2], sentences[1::2], strict=True) if a == anchor}
        positives = [corpus[each] for each in texts.positives(number)]
        assert sorted(positives) == sorted(own)
        known = [corpus[each] for each in texts.known(number)]
        assert set(known) == own | {anchor} & set(corpus)
    stored = texts.stored(tmp_path)
    assert [list(each) for each in stored] == [anchors, corpus]


def test_a_text_that_has_changed_is_refused(tmp_path):
    sentences = ["a", "b", "c", "d"]
    texts = PairTexts(lambda: sentences)
    sentences[2:] = []
    with pytest.raises(UserError, match="changed while it was read"):
        texts.stored(tmp_path)


def test_memory_is_some_fifty_bytes_a_text(tmp_path):
    count = 20_000

    def sentences():
        return (f"{number:0300}" for number in range(2 * count))

    tracemalloc.start()
    texts = PairTexts(sentences)
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.reset_peak()
    stored = texts.stored(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert stored[1][count - 1] == f"{2 * count - 1:0300}"
    assert held < 50 * 2 * count < 300 * 2 * count
    assert peak - held < 16 * 2 * count
