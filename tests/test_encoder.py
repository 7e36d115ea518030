"""The encoder against a padded batch: one sentence a row, nothing packed, towers added in numpy."""

import dataclasses
import string

import jax
import numpy as np
import pytest
from transformers import BertTokenizer

from jtcse_jax import encoder, sharding
from jtcse_jax.batch import Batch
from jtcse_jax.config import Architecture
from jtcse_jax.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Bank
from jtcse_jax.saved_model import SavedModel

WORDS = ("cat", "dog", "sees", "the", "old", "river", "night", "garden", ".")
SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
ALPHABET = (*string.ascii_lowercase, *string.digits)
ENTRIES = (*SPECIAL, *WORDS, *ALPHABET, *(f"##{letter}" for letter in ALPHABET))
SHAPE = Architecture(
    vocab_size=len(ENTRIES),
    hidden_size=16,
    num_layers=1,
    num_heads=2,
    intermediate_size=24,
    max_positions=200,
)


def tiny_model(num_towers: int = 2, *, pooling: str = "cls", max_len: int = 16) -> SavedModel:
    """Towers whose weights all matter, and a tokenizer of a few whole words and all letters."""
    bank = Bank(SHAPE, num_towers, pooling=pooling)
    random = np.random.default_rng(num_towers)

    def draw(path, leaf):
        centre = 1 if path[-1].key == "scale" else 0
        return random.normal(centre, 0.3, leaf.shape).astype(np.float32)

    params = jax.tree.map_with_path(draw, bank.abstract())
    vocabulary = {entry: number for number, entry in enumerate(ENTRIES)}
    tokenizer = BertTokenizer(vocab=vocabulary, do_lower_case=True)
    return SavedModel(bank, params, tokenizer, max_len, "tiny")


def some_sentences(count: int, longest: int = 25) -> list[str]:
    """Sentences of 0 to `longest` words, in no order of length."""
    random = np.random.default_rng(count)
    return [" ".join(random.choice(WORDS, random.integers(0, longest + 1))) for _ in range(count)]


def padded_vectors(model: SavedModel, sentences: list[str]) -> np.ndarray:
    """[n, D]: each sentence in a row of its own, cut by hand."""
    numbers = {entry: number for number, entry in enumerate(ENTRIES)}
    tokens = np.zeros((len(sentences), model.max_len), np.int32)
    segments = np.zeros_like(tokens)
    for row, sentence in enumerate(sentences):
        words = [numbers[word] for word in sentence.split()][: model.max_len - 2]
        ids = [numbers["[CLS]"], *words, numbers["[SEP]"]]
        tokens[row, : len(ids)] = ids
        segments[row, : len(ids)] = 1
    positions = np.where(segments, np.arange(model.max_len, dtype=np.int32), 0)
    order = np.arange(len(sentences), dtype=np.int32)
    starts = np.zeros((len(sentences), 1), np.int32)
    batch = Batch(tokens, positions, segments, starts, order, np.ones(len(sentences), bool))
    hidden = np.asarray(jax.jit(model.bank.apply)(model.params, batch).hidden)
    return sum(hidden[tower] for tower in range(model.bank.num_towers))


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def embed(model):
    return SentenceEncoder.of(model)


@pytest.mark.parametrize(("num_towers", "pooling"), [(2, "cls"), (1, "mean")])
def test_vectors_are_those_of_padded_sentences_in_their_order(num_towers, pooling):
    model = tiny_model(num_towers, pooling=pooling)
    sentences = some_sentences(150)
    vectors = SentenceEncoder.of(model).encode(sentences)
    assert vectors.dtype == np.float32 and vectors.shape == (150, 16)
    np.testing.assert_allclose(vectors, padded_vectors(model, sentences), atol=2e-5)


def test_sentence_beyond_one_row_of_the_usual_length(model):
    long = dataclasses.replace(model, max_len=150)
    sentences = some_sentences(12, longest=190)
    assert max(len(sentence.split()) for sentence in sentences) > 150
    vectors = SentenceEncoder.of(long).encode(sentences)
    np.testing.assert_allclose(vectors, padded_vectors(long, sentences), atol=2e-5)


def test_packed_sentences_equal_lone_ones(embed):
    sentences = some_sentences(40)
    lone = np.stack([embed.encode([sentence])[0] for sentence in sentences])
    np.testing.assert_allclose(embed.encode(sentences), lone, atol=2e-5)


def test_single_string_and_empty_list(embed):
    sentence = "the cat sees the river ."
    alone = embed.encode(sentence)
    assert alone.shape == (16,)
    np.testing.assert_array_equal(alone, embed.encode([sentence])[0])
    assert embed.encode([]).shape == (0, 16)
    assert embed.encode([], normalize=True).dtype == np.float32


def test_long_sentence_is_cut(embed, model):
    kept = "cat " * (model.max_len - 2)
    np.testing.assert_allclose(embed.encode(kept + "river " * 30), embed.encode(kept), atol=1e-6)
    assert np.abs(embed.encode(kept[4:] + "river") - embed.encode(kept)).max() > 1e-3


def test_other_blocks_and_calls_give_the_same_vectors(embed, monkeypatch):
    sentences = some_sentences(61)
    expected = embed.encode(sentences)
    for block, rows in ((7, 64), (8192, 2), (23, 1)):
        monkeypatch.setattr(encoder, "BLOCK", block)
        monkeypatch.setattr(encoder, "ROWS", rows)
        np.testing.assert_allclose(embed.encode(sentences), expected, atol=2e-5)


def test_few_shapes_are_compiled_whatever_is_encoded(model, monkeypatch):
    monkeypatch.setattr(encoder, "ROWS", 8)
    fresh = dataclasses.replace(model, bank=dataclasses.replace(model.bank, dropout=0.5))
    embed = SentenceEncoder.of(fresh)
    before = encoder.embed._cache_size()
    for count, longest in ((1, 3), (2, 25), (30, 5), (45, 25), (100, 14), (170, 2), (280, 25)):
        embed.encode(some_sentences(count, longest))
    assert 2 <= encoder.embed._cache_size() - before <= 4  # 1, 2, 4 or 8 rows


@pytest.mark.parametrize("tower_devices", [1, 2])
def test_eight_devices_equal_one(embed, model, tower_devices):
    mesh = sharding.make_mesh(tower_devices)
    assert mesh.size == 8
    bank = dataclasses.replace(model.bank, mesh=mesh)
    spread = SentenceEncoder(bank, model.params, model.tokenizer, model.max_len)
    assert spread.mesh is mesh
    sentences = some_sentences(90)
    np.testing.assert_allclose(spread.encode(sentences), embed.encode(sentences), atol=2e-5)


def test_devices_that_divide_no_power_of_two(embed, model, monkeypatch):
    monkeypatch.setattr(encoder, "ROWS", 4)
    mesh = sharding.make_mesh(devices=jax.devices()[:3])
    spread = SentenceEncoder(model.bank, model.params, model.tokenizer, model.max_len, mesh)
    sentences = some_sentences(70)
    np.testing.assert_allclose(spread.encode(sentences), embed.encode(sentences), atol=2e-5)


def test_normalized_vectors_have_length_one(embed):
    sentences = some_sentences(9)
    raw, scaled = embed.encode(sentences), embed.encode(sentences, normalize=True)
    lengths = np.sqrt((raw**2).sum(axis=1))
    assert np.abs(lengths - 1).min() > 0.1
    np.testing.assert_allclose(scaled, raw / lengths[:, None], rtol=1e-5)


def test_similarity_is_the_cosine_of_every_pair(embed):
    first, second = embed.encode(some_sentences(3)), embed.encode(some_sentences(5))
    expected = [
        [np.dot(x, y) / (np.linalg.norm(x) * np.linalg.norm(y)) for y in second] for x in first
    ]
    np.testing.assert_allclose(embed.similarity(first, second), expected, rtol=1e-4, atol=1e-6)
    assert embed.similarity(first[0], second).shape == (1, 5)
    assert embed.similarity(np.zeros(16), first).tolist() == [[0, 0, 0]]


@pytest.mark.parametrize("wrong", [None, 3, b"bytes", ["nested"]])
def test_what_is_no_string_is_refused(embed, wrong):
    with pytest.raises(UserError, match="encode takes strings, and got ") as error:
        embed.encode(["the cat", wrong])
    assert repr(wrong) in str(error.value)
