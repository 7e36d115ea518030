"""Parts, calls and devices of one bank's encoder; what vectors should be is in test_encoder.py."""

import dataclasses
import threading

import jax
import numpy as np
import pytest
import tokenizers
from tiny_models import some_sentences
from transformers import BertTokenizer

from jtcse_jax.encoding import bank_encoder, encoder
from jtcse_jax.encoding.bank_encoder import BankEncoder
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.runtime import sharding
from jtcse_jax.store.ensemble import Member


def test_other_batches_parts_and_calls_give_the_same_vectors(embed, monkeypatch):
    sentences = some_sentences(61)
    expected = embed.encode(sentences)
    for block, part, rows in ((7, 1024, 64), (8192, 1, 2), (23, 2, 1)):
        monkeypatch.setattr(encoder, "BLOCK", block)
        monkeypatch.setattr(bank_encoder, "PART", part)
        monkeypatch.setattr(embed.banks[0], "call_tokens", 64 * rows)
        np.testing.assert_allclose(embed.encode(sentences), expected, atol=2e-5)
        np.testing.assert_allclose(embed.encode(sentences, batch_size=13), expected, atol=2e-5)


def test_few_shapes_are_compiled_whatever_is_encoded(model, monkeypatch):
    mesh = sharding.make_mesh(devices=jax.devices()[:1])
    bank = dataclasses.replace(model.bank, dropout=0.5)  # a bank of its own in the cache
    one = BankEncoder(bank, model.params, model.tokenizer, model.serving_length, mesh)
    monkeypatch.setattr(one, "call_tokens", 16 * 64)
    monkeypatch.setattr(bank_encoder, "PART", 300)
    embed = SentenceEncoder([one])
    before = bank_encoder.embed._cache_size()
    for count, longest in ((1, 3), (2, 25), (30, 5), (45, 25), (100, 14), (170, 2), (500, 25)):
        for batch_size in (None, 37):
            embed.encode(some_sentences(count, longest), batch_size=batch_size)
    assert (
        bank_encoder.embed._cache_size() - before == 4
    )  # 1, 4 or 16 rows; 16 with few or many sentences


def test_the_next_parts_are_prepared_before_the_results_of_one_are_awaited(model, monkeypatch):
    monkeypatch.setattr(bank_encoder, "PART", 1)
    bank = BankEncoder.of(model)
    prepared = [threading.Event() for _ in range(6)]
    begun, awaited = [], []
    real_place, real_embed = bank.place, bank_encoder.embed

    def place(part, prompt):
        begun.append(int(part[0]))
        placed = real_place(part, prompt)
        prepared[int(part[0])].set()
        return placed

    class Waiting:
        """Vectors whose reader checks what the host has done before it reads."""

        def __init__(self, vectors):
            self.vectors = vectors

        def __array__(self, dtype=None, copy=None):
            part = len(awaited)
            held = min(part + 2 + bank_encoder.AHEAD, len(prepared))  # 2 parts are dispatched
            assert all(event.wait(60) for event in prepared[:held]) and len(begun) == held
            awaited.append(part)
            return np.asarray(self.vectors)

    monkeypatch.setattr(bank, "place", place)
    monkeypatch.setattr(bank_encoder, "embed", lambda *args: Waiting(real_embed(*args)))
    done = []
    bank.encode([str(number // 8) for number in range(48)], done.append)
    assert done == [8] * 6  # a sentence for each of the devices
    assert awaited == list(range(6))


def test_errors_of_a_later_part_come_unchanged(model, monkeypatch):
    monkeypatch.setattr(bank_encoder, "PART", 1)
    bank = BankEncoder.of(model)
    before = threading.active_count()
    with pytest.raises(UserError, match="not valid Unicode"):
        bank.encode([*["the cat"] * 30, "half a pair \ud800", *["the dog"] * 90])
    assert threading.active_count() == before


def test_no_thread_is_left_when_the_devices_fail(model, monkeypatch):
    error, before = RuntimeError("out of memory"), threading.active_count()

    def failing(*args):
        raise error

    monkeypatch.setattr(bank_encoder, "PART", 1)
    monkeypatch.setattr(bank_encoder, "embed", failing)
    with pytest.raises(RuntimeError) as raised:
        BankEncoder.of(model).encode(some_sentences(99))
    assert raised.value is error and threading.active_count() == before


@pytest.mark.parametrize(("words", "per_row"), [(13, 4), (1, 16)])
def test_full_calls_return_four_vectors_per_row_if_that_is_enough(model, words, per_row):
    """Rows have 16 slots; sentences of 15 tokens need 4 of them, those of 3 tokens all."""
    bank = BankEncoder.of(model)
    _, _, calls = bank.place([" ".join(["cat"] * words)] * 1200)
    full = [call for call in calls if call.batch.tokens.size == 8 * bank.call_tokens]
    assert full
    for call in full:
        count, size = len(call.sentences), len(call.batch.tokens) * per_row
        vectors = bank_encoder.embed(bank.bank, bank.mesh, bank.params, call.batch)
        assert vectors.shape == (size, bank.width) and count <= size
        assert np.asarray(call.batch.mask).tolist() == [True] * count + [False] * (size - count)


def test_cut_sentences_are_told_in_their_order_whatever_the_parts(model, monkeypatch):
    monkeypatch.setattr(bank_encoder, "PART", 1)
    long = [sentence % 3 == 0 for sentence in range(20)]
    encoded = BankEncoder.of(model).encode(["cat " * (40 if is_long else 1) for is_long in long])
    assert encoded.cut.tolist() == long


@pytest.mark.parametrize("serving_length", [16, 64, 100, 600])
def test_a_call_on_a_cpu_is_small_whatever_the_length(model, serving_length):
    shape = dataclasses.replace(model.bank.architecture, max_positions=600)
    bank = dataclasses.replace(model.bank, architecture=shape)
    one = BankEncoder(bank, model.params, model.tokenizer, serving_length)
    long_row = {100: (104,), 600: (600,)}  # a multiple of 8
    assert one.row_lengths == (64, *long_row.get(serving_length, ()))
    most = [len(one._rows_of_calls(1000, length)[0]) for length in one.row_lengths]
    expected = {16: [8], 64: [8], 100: [8, 4], 600: [8, 1]}[serving_length]
    assert most == [8 * rows for rows in expected]  # of the 8 devices


def test_only_sentences_beyond_64_tokens_lie_in_long_rows(model):
    """Each sentence lies in one call, alone with its segment, at the slot that `order` names."""
    bank = BankEncoder(model.bank, model.params, model.tokenizer, 152)
    words = [*range(0, 199, 3), 62, 63]  # with [CLS] and [SEP] the last are 64 and 65 tokens
    random = np.random.default_rng(0)
    order = random.permutation(len(words))
    sentences = [" ".join(["cat"] * words[number]) for number in order]
    cut, _, calls = bank.place(sentences)
    assert cut.tolist() == [words[number] > 150 for number in order]
    seen = []
    for call in calls:
        row_length = call.batch.tokens.shape[1]
        starts = np.asarray(call.batch.cls_positions)
        segments = np.asarray(call.batch.segments)
        slots = np.asarray(call.batch.order)[: len(call.sentences)]
        for number, slot in zip(call.sentences, slots, strict=True):
            tokens = min(152, words[order[number]] + 2)
            assert row_length == (64 if tokens <= 64 else 152)
            row, place = divmod(slot, starts.shape[1])
            (mine,) = np.nonzero(segments[row] == place + 1)
            assert len(mine) == tokens and mine[0] == starts[row, place]
        seen += call.sentences.tolist()
    assert sorted(seen) == list(range(len(sentences)))


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_calls_cover_the_rows_and_waste_little(model, devices):
    mesh = sharding.make_mesh(devices=jax.devices()[:devices])
    one = BankEncoder(model.bank, model.params, model.tokenizer, model.serving_length, mesh)
    one.call_tokens = 64 * 64
    for num_rows in [*range(1, 90), 500]:
        calls = one._rows_of_calls(num_rows, 64)
        assert [row for call in calls for row in call][:num_rows] == list(range(num_rows))
        assert {len(call) for call in calls} <= {devices * each for each in (1, 4, 16, 64)}
        assert num_rows <= calls[-1].stop <= max(2 * num_rows, devices)
        assert len(calls) <= 6 + num_rows // (64 * devices)


@pytest.mark.parametrize("tower_devices", [1, 2])
def test_eight_devices_equal_one(model, tower_devices):
    mesh = sharding.make_mesh(tower_devices)
    assert mesh.size == 8
    bank = dataclasses.replace(model.bank, mesh=mesh)
    spread = BankEncoder(bank, model.params, model.tokenizer, model.serving_length)
    assert spread.mesh is mesh
    lone = sharding.make_mesh(devices=jax.devices()[:1])
    one = BankEncoder(model.bank, model.params, model.tokenizer, model.serving_length, lone)
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
    spread = BankEncoder(model.bank, model.params, model.tokenizer, model.serving_length, mesh)
    monkeypatch.setattr(spread, "call_tokens", 4 * 64)
    sentences = some_sentences(70)
    vectors = SentenceEncoder([spread]).encode(sentences)
    np.testing.assert_allclose(vectors, embed.encode(sentences), atol=2e-5)


def test_progress_is_told_after_every_call_of_the_model(model, monkeypatch):
    mix = SentenceEncoder.of((Member(0.5, model), Member(0.5, model)))
    for bank in mix.banks:
        monkeypatch.setattr(bank, "call_tokens", 64)
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
        SentenceEncoder.of(dataclasses.replace(model, serving_length=2))


def test_tokenizer_without_special_tokens_is_refused(model):
    bare = BertTokenizer(vocab=dict(model.tokenizer.get_vocab()))
    bare.backend_tokenizer.post_processor = tokenizers.processors.Sequence([])
    with pytest.raises(UserError, match="adds no special tokens"):
        SentenceEncoder.of(dataclasses.replace(model, tokenizer=bare))
