"""Parts, calls and devices of one bank's encoder; what vectors should be is in test_encoder.py."""

import dataclasses

import jax
import numpy as np
import pytest
import tokenizers
from test_encoder import some_sentences, tiny_model
from transformers import BertTokenizer

from jtcse_jax import bank_encoder, encoder, sharding
from jtcse_jax.bank_encoder import BankEncoder
from jtcse_jax.encoder import SentenceEncoder
from jtcse_jax.ensemble import Member
from jtcse_jax.errors import UserError


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def embed(model):
    return SentenceEncoder.of(model)


def test_other_batches_parts_and_calls_give_the_same_vectors(embed, monkeypatch):
    sentences = some_sentences(61)
    expected = embed.encode(sentences)
    for block, part, rows in ((7, 1024, 64), (8192, 1, 2), (23, 2, 1)):
        monkeypatch.setattr(encoder, "BLOCK", block)
        monkeypatch.setattr(bank_encoder, "PART", part)
        monkeypatch.setattr(embed.banks[0], "most_rows", rows)
        np.testing.assert_allclose(embed.encode(sentences), expected, atol=2e-5)
        np.testing.assert_allclose(embed.encode(sentences, batch_size=13), expected, atol=2e-5)


def test_few_shapes_are_compiled_whatever_is_encoded(model, monkeypatch):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    bank = dataclasses.replace(model.bank, dropout=0.5)  # a bank of its own in the cache
    one = BankEncoder(bank, model.params, model.tokenizer, model.max_len, mesh)
    monkeypatch.setattr(one, "most_rows", 16)
    monkeypatch.setattr(bank_encoder, "PART", 300)
    embed = SentenceEncoder([one])
    before = bank_encoder.embed._cache_size()
    for count, longest in ((1, 3), (2, 25), (30, 5), (45, 25), (100, 14), (170, 2), (500, 25)):
        for batch_size in (None, 37):
            embed.encode(some_sentences(count, longest), batch_size=batch_size)
    assert bank_encoder.embed._cache_size() - before == 3  # 1, 4 or 16 rows


def test_one_part_is_tokenised_ahead_of_the_devices(model, monkeypatch):
    monkeypatch.setattr(bank_encoder, "PART", 1)
    bank = BankEncoder.of(model)
    tokenised, finished, ahead = [], [], []
    real = bank._tokenize
    monkeypatch.setattr(bank, "_tokenize", lambda part: tokenised.append(len(part)) or real(part))

    def done(count):
        ahead.append(sum(tokenised) - sum(finished))
        finished.append(count)

    bank.encode(some_sentences(40), done)
    assert tokenised == [8] * 5  # a sentence for each of the devices
    assert sum(finished) == 40
    assert ahead[0] == max(ahead) == 16


def test_cut_sentences_are_told_in_their_order_whatever_the_parts(model, monkeypatch):
    monkeypatch.setattr(bank_encoder, "PART", 1)
    long = [sentence % 3 == 0 for sentence in range(20)]
    encoded = BankEncoder.of(model).encode(["cat " * (40 if is_long else 1) for is_long in long])
    assert encoded.cut.tolist() == long


@pytest.mark.parametrize("max_len", [16, 64, 100, 600])
def test_a_call_on_a_cpu_is_small_whatever_the_length(model, max_len):
    one = BankEncoder(model.bank, model.params, model.tokenizer, max_len)
    assert one.row_length == max(64, max_len)
    assert one.most_rows == {16: 8, 64: 8, 100: 5, 600: 1}[max_len]


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_calls_cover_the_rows_and_waste_little(model, devices):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    one = BankEncoder(model.bank, model.params, model.tokenizer, model.max_len, mesh)
    one.most_rows = 64
    for num_rows in [*range(1, 90), 500]:
        calls = one._calls(num_rows)
        assert [row for call in calls for row in call][:num_rows] == list(range(num_rows))
        assert {len(call) for call in calls} <= {devices * each for each in (1, 4, 16, 64)}
        assert num_rows <= calls[-1].stop <= max(2 * num_rows, devices)
        assert len(calls) <= 6 + num_rows // (64 * devices)


@pytest.mark.parametrize("tower_devices", [1, 2])
def test_eight_devices_equal_one(model, tower_devices):
    mesh = sharding.make_mesh(tower_devices)
    assert mesh.size == 8
    bank = dataclasses.replace(model.bank, mesh=mesh)
    spread = BankEncoder(bank, model.params, model.tokenizer, model.max_len)
    assert spread.mesh is mesh
    lone = sharding.make_mesh(devices=jax.devices()[:1])
    one = BankEncoder(model.bank, model.params, model.tokenizer, model.max_len, lone)
    sentences = some_sentences(90)
    vectors = SentenceEncoder([spread]).encode(sentences)
    np.testing.assert_allclose(vectors, SentenceEncoder([one]).encode(sentences), atol=2e-5)


def test_loaded_model_uses_all_local_devices(model, embed):
    (bank,) = embed.banks
    assert bank.mesh.size == 8 == jax.local_device_count()
    leaf = jax.tree.leaves(bank.params)[0]
    assert len(leaf.devices()) == 8  # copied there once, not at every call


def test_devices_that_divide_no_power_of_two(embed, model, monkeypatch):
    mesh = sharding.make_mesh(devices=jax.devices()[:3])
    spread = BankEncoder(model.bank, model.params, model.tokenizer, model.max_len, mesh)
    monkeypatch.setattr(spread, "most_rows", 4)
    sentences = some_sentences(70)
    vectors = SentenceEncoder([spread]).encode(sentences)
    np.testing.assert_allclose(vectors, embed.encode(sentences), atol=2e-5)


def test_progress_is_told_after_every_call_of_the_model(model, monkeypatch):
    mix = SentenceEncoder.of((Member(0.5, model), Member(0.5, model)))
    for bank in mix.banks:
        monkeypatch.setattr(bank, "most_rows", 1)
    done = []
    mix.encode_block(some_sentences(200), done=done.append)
    assert len(done) > 4 and sum(done) == pytest.approx(200)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(model, bad):
    params = jax.tree.map(np.array, model.params)
    params["layers"][0]["output"]["kernel"][1, 3, 2] = bad
    with pytest.raises(UserError, match=r"tiny: layers\.0\.output\.kernel of tower 1 has values"):
        SentenceEncoder.of(dataclasses.replace(model, params=params))


def test_length_without_room_for_a_token_is_refused(model):
    with pytest.raises(UserError, match="max_len = 2: with this tokenizer it must be from 3"):
        SentenceEncoder.of(dataclasses.replace(model, max_len=2))


def test_tokenizer_without_special_tokens_is_refused(model):
    bare = BertTokenizer(vocab=dict(model.tokenizer.get_vocab()))
    bare.backend_tokenizer.post_processor = tokenizers.processors.Sequence([])
    with pytest.raises(UserError, match="adds no special tokens"):
        SentenceEncoder.of(dataclasses.replace(model, tokenizer=bare))
