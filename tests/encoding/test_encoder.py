"""The encoder against a padded batch: one sentence a row, nothing packed, towers added in numpy."""

import dataclasses
import re
import sys

import jax
import numpy as np
import pytest
from tiny_models import (
    ENTRIES,
    SPECIAL,
    padded_vectors,
    some_sentences,
    tiny_model,
)
from transformers import BertTokenizer

from jtcse_jax.encoding import progress
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.encoding.searching import Hit
from jtcse_jax.errors import UserError
from jtcse_jax.store.ensemble import Member


@pytest.mark.parametrize(("num_towers", "pooling"), [(2, "cls"), (1, "mean")])
def test_vectors_are_those_of_padded_sentences_in_their_order(num_towers, pooling):
    model = tiny_model(num_towers, pooling=pooling)
    sentences = some_sentences(150)
    vectors = SentenceEncoder.of(model).encode(sentences)
    assert vectors.dtype == np.float32 and vectors.shape == (150, 16)
    np.testing.assert_allclose(vectors, padded_vectors(model, sentences), atol=2e-5)


def test_sentence_beyond_one_row_of_the_usual_length(model):
    long = dataclasses.replace(model, serving_length=150)
    sentences = [*some_sentences(12, longest=190), *some_sentences(30)]
    assert max(len(sentence.split()) for sentence in sentences) > 150
    vectors = SentenceEncoder.of(long).encode(sentences)
    np.testing.assert_allclose(vectors, padded_vectors(long, sentences), atol=2e-5)


def test_packed_sentences_equal_lone_ones(embed):
    sentences = some_sentences(40)
    lone = np.stack([embed.encode([sentence])[0] for sentence in sentences])
    np.testing.assert_allclose(embed.encode(sentences), lone, atol=2e-5)


def test_single_string_empty_list_and_empty_string(embed):
    sentence = "the cat sees the river ."
    alone = embed.encode(sentence)
    assert alone.shape == (16,)
    np.testing.assert_array_equal(alone, embed.encode([sentence])[0])
    none = embed.encode([], normalize_embeddings=True, truncate_dim=3)
    assert none.shape == (0, 3) and none.dtype == np.float32
    nothing, blank = embed.encode(["", "  "])
    np.testing.assert_allclose(nothing, blank, atol=1e-6)
    assert np.linalg.norm(nothing) > 0.1


@pytest.mark.parametrize("kind", [tuple, iter, np.array, lambda items: (item for item in items)])
def test_any_iterable_is_taken(embed, kind):
    sentences = some_sentences(30)
    vectors = embed.encode(kind(sentences), batch_size=7)
    np.testing.assert_allclose(vectors, embed.encode(sentences), atol=2e-5)


def test_iterator_is_read_block_by_block(embed, monkeypatch):
    read, seen = [], []
    inner = embed.encode_block

    def watched(block, **options):
        seen.append(len(read))
        return inner(block, **options)

    monkeypatch.setattr(embed, "encode_block", watched)
    embed.encode((read.append(1) or sentence for sentence in some_sentences(10)), batch_size=4)
    assert seen == [4, 8, 10]


def test_long_sentences_are_cut_counted_and_warned_of_once(model, caplog):
    embed = SentenceEncoder.of(model)
    kept = "cat " * (model.serving_length - 2)
    np.testing.assert_allclose(embed.encode(kept + "river " * 30), embed.encode(kept), atol=1e-6)
    assert np.abs(embed.encode(kept[4:] + "river") - embed.encode(kept)).max() > 1e-3
    assert embed.truncated == 1
    caplog.clear()
    embed.encode([kept, kept + "dog", "dog", kept + "cat", kept * 9], batch_size=2)
    assert [record.message for record in caplog.records] == [
        f"sentences cut at {model.serving_length} tokens: 3."
    ]
    assert embed.truncated == 4


def test_unknown_characters_are_counted_and_warned_of_above_1_percent(model, caplog):
    embed = SentenceEncoder.of(model)
    known = "the cat " * 5
    embed.encode([known] * 9 + ["cat ก"])  # one character of 365
    assert (embed.unknown, embed.characters) == (1, 9 * 40 + 5)
    assert not [record for record in caplog.records if "[UNK]" in record.message]
    embed.encode(["กขค the", known, "จฉ"])  # 5 of 49
    assert embed.unknown == 6
    warned = [record.message for record in caplog.records if "[UNK]" in record.message]
    assert len(warned) == 1 and "10.20 %" in warned[0]


def test_ensemble_counts_what_any_member_does_not_know(model):
    other = dataclasses.replace(
        tiny_model(1), tokenizer=BertTokenizer(vocab={entry: n for n, entry in enumerate(SPECIAL)})
    )
    mix = SentenceEncoder.of((Member(0.5, model), Member(0.5, other)))
    mix.encode(["the cat", "ก"])
    assert (mix.unknown, mix.characters) == (len("thecatก"), 8)


def test_ensemble_is_the_weighted_sum_of_raw_vectors(model):
    """The second member has its own words, pooling and length."""
    second = tiny_model(1, pooling="mean", serving_length=9)
    entries = [*SPECIAL, *reversed(ENTRIES[len(SPECIAL) :])]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    second = dataclasses.replace(second, tokenizer=BertTokenizer(vocab=vocabulary))
    sentences = some_sentences(40)
    parts = [SentenceEncoder.of(each).encode(sentences) for each in (model, second)]
    mix = SentenceEncoder.of((Member(0.3, model), Member(0.7, second)))
    vectors = mix.encode(sentences)
    np.testing.assert_allclose(vectors, 0.3 * parts[0] + 0.7 * parts[1], atol=2e-5)
    cut = {len(sentence.split()) > 7 for sentence in sentences}
    assert cut == {True, False}
    assert mix.truncated == sum(len(sentence.split()) > 7 for sentence in sentences)


def test_normalized_and_truncated_vectors(embed):
    sentences = some_sentences(9)
    raw, scaled = embed.encode(sentences), embed.encode(sentences, normalize_embeddings=True)
    lengths = np.sqrt((raw**2).sum(axis=1))
    assert np.abs(lengths - 1).min() > 0.1
    np.testing.assert_allclose(scaled, raw / lengths[:, None], rtol=1e-5)
    np.testing.assert_array_equal(embed.encode(sentences, truncate_dim=5), raw[:, :5])
    both = embed.encode(sentences[0], truncate_dim=5, normalize_embeddings=True)
    np.testing.assert_allclose(both, raw[0, :5] / np.sqrt((raw[0, :5] ** 2).sum()), rtol=1e-5)


@pytest.mark.parametrize("sentences", ["the cat", ["the cat", "dog"]])
def test_output_of_other_libraries(embed, sentences):
    torch = pytest.importorskip("torch", reason="torch is not installed")
    expected = embed.encode(sentences)
    for output, kind in (("jax", jax.Array), ("torch", torch.Tensor)):
        vectors = embed.encode(sentences, output=output)
        assert isinstance(vectors, kind) and vectors.shape == expected.shape
        np.testing.assert_array_equal(np.asarray(vectors), expected)


def test_output_of_a_library_that_is_absent_is_refused(embed, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(UserError, match="the package torch: pip install torch"):
        embed.encode("the cat", output="torch")


@pytest.mark.parametrize(
    "option", [{"truncate_dim": 0}, {"truncate_dim": 17}, {"batch_size": 0}, {"output": "list"}]
)
def test_option_out_of_range_is_named(embed, option):
    ((name, value),) = option.items()
    with pytest.raises(UserError, match=f"{name} = {value!r}: "):
        embed.encode(["the cat"], **option)


def test_progress_is_told_on_stderr(embed, capsys):
    embed.encode(some_sentences(50), show_progress_bar=True, batch_size=10)
    said = capsys.readouterr()
    assert "50/50" in said.err and "sentences/s" in said.err and not said.out
    embed.encode(some_sentences(5, longest=3))
    assert not capsys.readouterr().err


def test_progress_in_a_log_file_is_a_line_now_and_then(embed, capsys, monkeypatch):
    monkeypatch.setattr(progress, "LOG_EVERY", 0.0)
    embed.encode(some_sentences(50), show_progress_bar=True, batch_size=10)
    lines = [line for line in capsys.readouterr().err.splitlines() if "/50" in line]
    done = [int(re.search(r"(\d+)/50", line)[1]) for line in lines]
    assert len(done) >= 5 and done == sorted(done) and done[0] < 50 and done[-1] == 50


def test_similarity_is_the_cosine_of_every_pair(embed):
    first, second = embed.encode(some_sentences(3)), embed.encode(some_sentences(5, longest=3))
    expected = [
        [np.dot(x, y) / (np.linalg.norm(x) * np.linalg.norm(y)) for y in second] for x in first
    ]
    np.testing.assert_allclose(embed.similarity(first, second), expected, rtol=1e-4, atol=1e-6)
    assert embed.similarity(first[0], second).shape == (1, 5)
    assert embed.similarity(np.zeros(16), first).tolist() == [[0, 0, 0]]
    with pytest.raises(UserError, match="encode the sentences first"):
        embed.similarity("a cat", "a dog")
    with pytest.raises(UserError, match="of one width, not of 16 and 8"):
        embed.similarity(first, first[:, :8])


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", ["nested"], ("a", "pair")])
def test_what_is_no_string_is_refused_and_its_index_named(embed, wrong):
    with pytest.raises(UserError) as error:
        embed.encode(["the cat"] * 5 + [wrong], batch_size=2)
    assert f"encode takes strings, but sentence 5 is {wrong!r}." in str(error.value)


@pytest.mark.parametrize("wrong", [None, 3])
def test_what_is_no_list_is_refused(embed, wrong):
    with pytest.raises(UserError, match=f"encode takes strings, not {wrong}"):
        embed.encode(wrong)


def test_text_that_is_no_unicode_is_refused(embed):
    with pytest.raises(UserError, match="not valid Unicode"):
        embed.encode(["the cat", "half a pair: \ud800"])


def test_search_gives_the_sentences_in_order_of_cosine(embed):
    corpus, more, queries = some_sentences(20), some_sentences(15, 9), some_sentences(4, 6)
    embed.build_index(corpus)
    embed.add_to_index(more)
    embed.add_to_index("the old river")
    whole = [*corpus, *more, "the old river"]
    cosines = embed.similarity(embed.encode(queries), embed.encode(whole))
    found = embed.search(queries, top_k=7)
    assert [len(hits) for hits in found] == [7] * 4
    for row, hits in zip(cosines, found, strict=True):
        best = np.sort(row)[::-1][:7]
        np.testing.assert_allclose([hit.score for hit in hits], best, atol=1e-5)
        for hit in hits:
            assert hit.sentence == whole[hit.index]
            assert row[hit.index] == pytest.approx(hit.score, abs=1e-5)
    lone = embed.search(queries[0], top_k=7)
    assert [hit.index for hit in lone] == [hit.index for hit in found[0]]
    assert len(embed.search("cat")) == 5 and len(embed.search("cat", 99)) == 36
    assert embed.search("the old river", 1)[0] == Hit(35, "the old river", pytest.approx(1))
    assert found[0][3].score - found[0][4].score > 1e-5
    between = (found[0][3].score + found[0][4].score) / 2
    assert embed.search(queries[0], 7, threshold=between) == lone[:4]
    embed.build_index(["dog"])
    assert [hit.sentence for hit in embed.search("cat")] == ["dog"]


def test_search_needs_an_index_and_a_number(model):
    embed = SentenceEncoder.of(model)
    for call in (embed.search, embed.add_to_index):
        with pytest.raises(UserError, match="call build_index first"):
            call("cat")
    with pytest.raises(UserError, match="backend = 'fast'.* exact, flat, hnsw, ivfpq"):
        embed.build_index(["cat"], backend="fast")
    with pytest.raises(
        UserError, match="build_index takes the sentences, not the string 'text.txt'"
    ):
        embed.build_index("text.txt")
    embed.build_index([])
    assert embed.search("cat") == []
    with pytest.raises(UserError, match="top_k = 0"):
        embed.search("cat", top_k=0)
