"""The token cache against transformers' own tokenisation, and what happens to a cache on disk."""

import json
import logging
import os
import sys
import tracemalloc
from dataclasses import replace

import numpy as np
import pytest
from processes import ROOT
from transformers import BertTokenizer

from jtcse_jax.config import DataConfig
from jtcse_jax.data import tokens
from jtcse_jax.data.batches import PackedBatches
from jtcse_jax.data.sources import open_source
from jtcse_jax.data.tokens import TokenCache, tokenize
from jtcse_jax.errors import UserError

SHARED = ROOT.parent / "shared"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = "a cat sat on the mat and saw two dogs run far away from it".split()
LINES = [
    "A cat sat on the mat.",
    "",
    "Two dogs run far away and a cat saw it.",
    "the mat",
    "   ",
    "a dog sat far away from the two cats and it saw the dogs run on the mat",
]
SENTENCES = [line for line in LINES if line.strip()]


def make_tokenizer(extra=(), **ids):
    vocab = {word: i for i, word in enumerate([*SPECIAL, *WORDS, ".", "##s", "dog", *extra])}
    return BertTokenizer(vocab=vocab | ids)


@pytest.fixture
def tokenizer():
    return make_tokenizer()


@pytest.fixture
def source(tmp_path):
    (tmp_path / "text.txt").write_text("\n".join(LINES) + "\n")
    return open_source(str(tmp_path / "text.txt"))


@pytest.fixture
def caches(tmp_path):
    return tmp_path / "caches"


def check(cache, tokenizer, sentences, max_len):
    assert len(cache) == len(sentences)
    for i, sentence in enumerate(sentences):
        expected = tokenizer(sentence, truncation=True, max_length=max_len)["input_ids"]
        found = cache.sentence(i)
        assert found.dtype == np.int32 and found.tolist() == expected
        assert cache.lengths[i] == len(expected)


@pytest.mark.parametrize("max_len", [3, 8, 64])
@pytest.mark.parametrize("block", [1, 3, 8192])
def test_tokens_are_those_of_the_tokenizer(source, tokenizer, caches, max_len, block, monkeypatch):
    monkeypatch.setattr(tokens, "_BLOCK", block)
    cache = tokenize(source, tokenizer, max_len, caches)
    check(cache, tokenizer, SENTENCES, max_len)
    whole = [len(tokenizer(sentence)["input_ids"]) for sentence in SENTENCES]
    assert cache.stats == {
        "source": source.spec,
        "sentences": 4,
        "blank": 2,
        "truncated": sum(length > max_len for length in whole),
        "characters": sum(map(len, SENTENCES)),
        "unknown": 0,
        "mean_length": pytest.approx(sum(min(length, max_len) for length in whole) / 4),
    }
    assert (cache.views, cache.pad_id, cache.max_len) == (1, 0, max_len)
    assert cache.vocab_size == len(tokenizer)


def test_a_sentence_of_just_max_len_is_not_counted_as_truncated(source, tokenizer, caches):
    longest = max(len(tokenizer(sentence)["input_ids"]) for sentence in SENTENCES)
    assert tokenize(source, tokenizer, longest, caches).stats["truncated"] == 0
    assert tokenize(source, tokenizer, longest - 1, caches).stats["truncated"] == 1


def test_characters_of_unknown_words_are_counted(tmp_path, tokenizer, caches):
    (tmp_path / "text.txt").write_text("a cat ran\nthe dog\nzebras\n")
    stats = tokenize(open_source(str(tmp_path / "text.txt")), tokenizer, 16, caches).stats
    assert (stats["unknown"], stats["characters"]) == (len("ran" + "zebras"), 9 + 7 + 6)


def test_pairs_keep_their_views_side_by_side(tmp_path, tokenizer, caches):
    (tmp_path / "pairs.tsv").write_text("a cat\tthe cat\n\ntwo dogs\ta dog run\n")
    cache = tokenize(open_source(str(tmp_path / "pairs.tsv")), tokenizer, 16, caches)
    assert cache.views == 2 and cache.stats["blank"] == 1
    check(cache, tokenizer, ["a cat", "the cat", "two dogs", "a dog run"], 16)


@pytest.mark.parametrize(("highest", "bits"), [(65_535, 16), (65_536, 32), (70_000, 32)])
def test_a_large_vocabulary_is_stored_in_32_bits(source, caches, highest, bits):
    tokenizer = make_tokenizer(cat=highest)
    cache = tokenize(source, tokenizer, 16, caches)
    check(cache, tokenizer, SENTENCES, 16)
    assert cache.sentence(0).max() == highest == cache.vocab_size - 1
    (folder,) = caches.iterdir()
    assert (folder / "tokens.bin").stat().st_size == cache.lengths.sum() * bits // 8


def test_the_callers_tokenizer_is_neither_obeyed_nor_changed(source, tokenizer, caches):
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    before = tokenizer.backend_tokenizer.to_str()
    cache = tokenize(source, tokenizer, 32, caches)
    assert tokenizer.backend_tokenizer.to_str() == before
    check(cache, make_tokenizer(), SENTENCES, 32)
    assert tokenize(source, make_tokenizer(), 32, caches).stats == cache.stats
    assert len(list(caches.iterdir())) == 1


def test_a_finished_cache_is_used_without_reading_the_text(source, tokenizer, caches):
    tokenize(source, tokenizer, 16, caches)

    def unreadable():
        raise AssertionError("the text was read again")

    cache = tokenize(replace(source, _shards=[unreadable]), tokenizer, 16, caches)
    check(cache, tokenizer, SENTENCES, 16)


def test_other_text_tokenizer_or_max_len_gives_another_cache(tmp_path, source, tokenizer, caches):
    tokenize(source, tokenizer, 16, caches)
    tokenize(source, tokenizer, 17, caches)
    tokenize(source, make_tokenizer(["cats"]), 16, caches)
    (tmp_path / "text.txt").write_text("the cat\n")
    check(
        tokenize(open_source(str(tmp_path / "text.txt")), tokenizer, 16, caches),
        tokenizer,
        ["the cat"],
        16,
    )
    assert len(list(caches.iterdir())) == 4


@pytest.mark.parametrize("name", ["tokens.bin", "lengths.bin", "starts.bin", "meta.json"])
@pytest.mark.parametrize("damage", ["shorter", "empty", "absent"])
def test_a_damaged_cache_is_made_anew(source, tokenizer, caches, name, damage, caplog):
    tokenize(source, tokenizer, 16, caches)
    (folder,) = caches.iterdir()
    content = (folder / name).read_bytes()
    (folder / name).unlink()
    if damage != "absent":
        (folder / name).write_bytes(content[:-2] if damage == "shorter" else b"")
    with pytest.raises(UserError, match=f"delete {folder}|is absent or incomplete.; delete it"):
        TokenCache(folder)
    with caplog.at_level(logging.WARNING):
        check(tokenize(source, tokenizer, 16, caches), tokenizer, SENTENCES, 16)
    assert [record.message for record in caplog.records] == [
        f"the token cache {folder} is damaged: tokenising again"
    ]
    assert list(caches.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("tokens.bin", 65_535, "token id 65535, in a vocabulary of 23"),
        ("lengths.bin", 0, "a sentence of 0 tokens, not of 1 to 16"),
        ("lengths.bin", 17, "a sentence of 17 tokens, not of 1 to 16"),
    ],
)
def test_what_cannot_be_in_a_batch_is_reported(tmp_path, tokenizer, caches, name, value, message):
    (tmp_path / "many.txt").write_text("the cat\n" * 70)
    tokenize(open_source(str(tmp_path / "many.txt")), tokenizer, 16, caches)
    (folder,) = caches.iterdir()
    with open(folder / name, "r+b") as file:  # in the first block: opening looks at the last
        file.write(np.uint16(value).tobytes())
    with pytest.raises(UserError, match=rf"{folder.name} is damaged \({message}\); delete it"):
        batches = PackedBatches(TokenCache(folder), DataConfig(batch_size=70), seed=0)
        list(batches.iterate(0, 1, timeout=60))


def test_an_error_in_the_text_leaves_nothing_behind(tmp_path, tokenizer, caches):
    (tmp_path / "text.txt").write_bytes(b"the cat\nthe \xff\n")
    with pytest.raises(UserError, match="text.txt:2"):
        tokenize(open_source(str(tmp_path / "text.txt")), tokenizer, 16, caches)
    assert list(caches.iterdir()) == []


@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
def test_a_cache_is_plain_arrays_and_costs_two_bytes_a_sentence_beside_its_tokens(
    tmp_path, tokenizer, caches, count
):
    lines = [" ".join(WORDS[: 1 + i % len(WORDS)]) for i in range(count)]
    (tmp_path / "many.txt").write_text("\n".join(lines))
    cache = tokenize(open_source(str(tmp_path / "many.txt")), tokenizer, 16, caches)
    check(cache, tokenizer, lines, 16)
    (folder,) = caches.iterdir()
    meta = folder / "meta.json"
    assert {path.name: path.stat().st_size for path in folder.iterdir() if path != meta} == {
        "tokens.bin": 2 * int(cache.lengths.sum()),
        "lengths.bin": 2 * count,
        "starts.bin": 8 * -(-count // 64),  # of every 64th sentence
    }
    with pytest.raises(IndexError):
        cache.sentence(count)
    np.testing.assert_array_equal(cache.sentence(-1), cache.sentence(count - 1))


def test_opening_a_cache_reads_neither_its_tokens_nor_all_its_lengths(tmp_path):
    """Files of holes; numpy's own memory is counted, mapped pages are not."""
    count, length = 2**24, 64
    sizes = {"tokens.bin": 2 * count * length, "lengths.bin": 2 * count, "starts.bin": count // 8}
    for name, size in sizes.items():
        with open(tmp_path / name, "wb") as file:
            file.truncate(size)
    with open(tmp_path / "lengths.bin", "r+b") as file:
        file.seek(-128, os.SEEK_END)
        file.write(np.full(64, length, np.uint16).tobytes())
    with open(tmp_path / "starts.bin", "r+b") as file:
        file.seek(-8, os.SEEK_END)
        file.write(np.array([(count - 64) * length], np.int64).tobytes())
    with open(tmp_path / "tokens.bin", "r+b") as file:
        file.seek(-2 * length, os.SEEK_END)
        file.write(np.arange(length, dtype=np.uint16).tobytes())
    meta = {"dtype": "<u2", "tokens": count * length, "views": 1, "pad_id": 0, "max_len": length}
    stats = {"source": "", "sentences": count, "mean_length": length}
    stats |= {"blank": 0, "truncated": 0, "characters": 0, "unknown": 0}
    meta |= {"vocab_size": length, "stats": stats}
    (tmp_path / "meta.json").write_text(json.dumps(meta))
    tracemalloc.start()
    try:
        cache = TokenCache(tmp_path)
        found = [cache.sentence(index) for index in (count - 1, count // 2)]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(cache) == count and peak < 200_000
    np.testing.assert_array_equal(found[0], np.arange(length))
    assert len(found[1]) == 0


@pytest.mark.parametrize("max_len", [0, 2, 65_536])
def test_a_max_len_that_cannot_work_is_refused(source, tokenizer, caches, max_len):
    with pytest.raises(UserError, match=f"max_len = {max_len}: .* from 3 to 65535"):
        tokenize(source, tokenizer, max_len, caches)


def test_a_tokenizer_that_cannot_work_is_refused(source, tokenizer, caches):
    with pytest.raises(UserError, match="object is not a fast tokenizer"):
        tokenize(source, object(), 16, caches)
    tokenizer.pad_token = None
    with pytest.raises(UserError, match="no padding token"):
        tokenize(source, tokenizer, 16, caches)


def test_a_cache_folder_that_cannot_be_written_is_reported(source, tokenizer, tmp_path):
    with pytest.raises(UserError, match="text.txt/.* cannot be written"):
        tokenize(source, tokenizer, 16, tmp_path / "text.txt")


@pytest.mark.parametrize("progress", [True, False])
@pytest.mark.parametrize("terminal", [True, False])
def test_progress_is_shown_on_a_terminal_only(
    source, tokenizer, caches, monkeypatch, capsys, progress, terminal
):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    monkeypatch.setenv("TERM", "xterm")
    tokenize(source, tokenizer, 16, caches, progress=progress)
    output = capsys.readouterr()
    assert output.out == ""
    assert ("4 sentences" in output.err) == (progress and terminal)
    assert progress and terminal or output.err == ""


def test_a_million_sentences_of_wikipedia_would_take_less_than_75_mb(caches):
    text = SHARED / "data/wiki/wiki20k.txt"
    vocab = SHARED / "data/vocab/bert-base-uncased/vocab.txt"
    if not text.exists() or not vocab.exists():
        pytest.skip("needs ../shared/data/wiki and ../shared/data/vocab")
    words = vocab.read_text(encoding="utf-8").splitlines()
    tokenizer = BertTokenizer(vocab={word: i for i, word in enumerate(words)})
    cache = tokenize(open_source(str(text)), tokenizer, 64, caches)
    size = sum(path.stat().st_size for path in caches.rglob("*") if path.is_file())
    assert len(cache) == 20_000 and size * 50 < 75e6
    assert cache.stats["mean_length"] == pytest.approx(31.1, abs=0.5)
