"""What is seen inside the towers, against transformers and against numpy towers."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from loop_encoder import attend, embed, finish
from tiny_models import ENTRIES, some_sentences, tiny_model
from torch_models import NO_TORCH, torch_model

from jtcse_jax.architecture import Cross
from jtcse_jax.config import Config, ModelConfig
from jtcse_jax.config_file import to_json
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation import inspection
from jtcse_jax.evaluation.diagnostics import embed_pairs
from jtcse_jax.evaluation.inspection import (
    default_cross,
    diagnose,
    diagnose_towers,
    find_punctuation,
    inspect,
)
from jtcse_jax.evaluation.sts import Pairs
from jtcse_jax.models.towers import Bank, stack
from jtcse_jax.store import hf_config, hf_weights
from jtcse_jax.store.ensemble import Member
from jtcse_jax.store.saved_model import SavedModel

# Of 0 to 20 words, the longest cut to 16 tokens.
SENTENCES = ["", "cat", *some_sentences(9, longest=20), "dog . . sees"]


def two_layers(**fields) -> SavedModel:
    """The tiny model of test_encoder with two towers of two layers."""
    tiny = tiny_model()
    architecture = dataclasses.replace(tiny.bank.architecture, num_layers=2)
    bank = Bank(architecture, 2, **fields)
    random = np.random.default_rng(3)

    def draw(path, leaf):
        return random.normal(path[-1].key == "scale", 0.3, leaf.shape).astype(np.float32)

    params = jax.tree.map_with_path(draw, bank.abstract())
    return dataclasses.replace(tiny, bank=bank, params=params)


def pairs_of(sentences):
    gold = np.arange(len(sentences) // 2, dtype=float)
    return Pairs(sentences[0::2], sentences[1::2], gold)


def joined(parts):
    """[..., n, ...] arrays by sentence, each cut to its tokens: (tokens, hidden, attention)."""
    found = []
    for part in parts:
        for row, length in enumerate(part.mask.sum(axis=1)):
            span = slice(length)
            found.append(
                (
                    part.tokens[row, span],
                    part.hidden[:, :, row, span],
                    part.attention[:, :, row, :, span, span],
                )
            )
    return found


def test_states_and_attention_are_those_of_transformers(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from transformers import BertModel

    # Five sentences a call, so that the last call is not full.
    monkeypatch.setattr(inspection, "ATTENTION_ENTRIES", 5 * 16**2)
    sizes = {
        "vocab_size": len(ENTRIES),
        "hidden_size": 24,
        "num_hidden_layers": 3,
        "num_attention_heads": 3,
        "intermediate_size": 40,
        "max_position_embeddings": 18,
    }
    torch_model(tmp_path, "bert", seed=1, **sizes)
    theirs = BertModel.from_pretrained(tmp_path, attn_implementation="eager").eval()
    architecture = hf_config.read_architecture(tmp_path)
    params = stack([hf_weights.read_tower(tmp_path, architecture)])
    model = SavedModel(Bank(architecture, 1), params, tiny_model().tokenizer, 16, "torch")
    before = model.tokenizer.backend_tokenizer.to_str()
    found = joined(inspect(model, SENTENCES))
    assert model.tokenizer.backend_tokenizer.to_str() == before
    assert len(found) == len(SENTENCES) and max(len(tokens) for tokens, *_ in found) == 16
    for sentence, (tokens, hidden, attention) in zip(SENTENCES, found, strict=True):
        ids = model.tokenizer(sentence)["input_ids"]
        ids = ids if len(ids) <= 16 else [*ids[:15], ids[-1]]
        assert tokens.tolist() == ids
        with torch.no_grad():
            outputs = theirs(torch.tensor([ids]), output_hidden_states=True, output_attentions=True)
        for ours, reference in (
            (hidden[0], outputs.hidden_states),
            (attention[0], outputs.attentions),
        ):
            reference = np.concatenate([layer.numpy() for layer in reference])
            assert ours.shape == reference.shape
            np.testing.assert_allclose(ours, reference, atol=1e-5 * np.abs(reference).max())


def test_a_long_sentence_changes_nothing_of_a_short_one():
    """It is cut at the serving length, and the others are padded to it."""
    model = dataclasses.replace(two_layers(), serving_length=150)
    found = joined(inspect(model, [*SENTENCES, "cat " * 190]))
    assert len(found[-1][0]) == 150
    for one, other in zip(joined(inspect(model, SENTENCES)), found, strict=False):
        for alone, beside in zip(one, other, strict=True):
            np.testing.assert_allclose(beside, alone, atol=2e-5)


@pytest.mark.parametrize(
    "cross", [Cross("side", "value", 1), Cross("side", "value", 2), Cross("main", "probs", 1)]
)
def test_crossed_streams_are_those_of_numpy_towers(cross):
    model = two_layers(cross=cross)
    architecture = model.bank.architecture
    towers = [jax.tree.map(lambda leaf, k=k: leaf[k].astype(float), model.params) for k in (0, 1)]
    plain = joined(inspect(model, SENTENCES))
    found = joined(inspect(model, SENTENCES, crossed=True))
    for tokens, hidden, attention in found:
        states = [embed(architecture, tower, tokens) for tower in towers]
        for number in (0, 1, 2):
            for k in (0, 1):
                np.testing.assert_allclose(hidden[k, number], states[k], atol=2e-5)
            if number == 2:
                break
            layers = [tower["layers"][number] for tower in towers]
            seen = [attend(architecture, layers[k], states[k]) for k in (0, 1)]
            for k in (0, 1):
                np.testing.assert_allclose(attention[k, number], seen[k][0], atol=2e-5)
            probs, values = zip(*seen, strict=True)
            if number + 1 in {1: (2,), 2: (1, 2)}[cross.num_layers]:
                if cross.exchange == "value":
                    values = values[::-1]
                else:
                    probs = probs[::-1]
            states = [
                finish(architecture, layers[k], states[k], probs[k], values[k]) for k in (0, 1)
            ]
    assert max(np.abs(one[1] - two[1]).max() for one, two in zip(plain, found, strict=True)) > 0.1


def test_report_of_towers_is_made_of_single_sentences():
    model = two_layers()
    report = diagnose_towers(model, SENTENCES, cross=Cross("side", "value", 1))
    report = json.loads(json.dumps(report, allow_nan=False))
    crossing = dataclasses.replace(model, bank=two_layers(cross=Cross("side", "value", 1)).bank)
    for stream, crossed in (("plain", False), ("crossed", True)):
        ratios, masses = [], {"[CLS]": [], "[SEP]": [], ".": []}
        for tokens, hidden, attention in joined(inspect(crossing, SENTENCES, crossed=crossed)):
            norms = np.linalg.norm(hidden, axis=-1)
            ratios.append(norms[..., 0] / norms[..., 1:].mean(axis=-1))
            texts = np.array(model.tokenizer.convert_ids_to_tokens(tokens))
            for name, each in masses.items():
                each.append(attention[..., texts == name].sum(axis=-1).mean(axis=-1))
        found = report[stream]
        np.testing.assert_allclose(found["e_cls"], np.mean(ratios, axis=0), atol=6e-5)
        assert np.shape(found["cls_norm"]) == (2, 3)
        for name, text in (("cls", "[CLS]"), ("sep", "[SEP]"), ("punctuation", ".")):
            expected = np.mean(masses[text], axis=0)
            assert expected.shape == (2, 2, 2)
            np.testing.assert_allclose(found["attention"][name], expected, atol=6e-5)
    assert report["crossed"]["num_layers"] == 1 and report["plain"] != report["crossed"]
    assert report["crossed"]["e_cls"][0][:2] == report["plain"]["e_cls"][0][:2]
    lengths = [min(16, 2 + len(sentence.split())) for sentence in SENTENCES]
    assert report["uniform_attention"]["cls"] == pytest.approx(
        np.mean([1 / length for length in lengths]), abs=6e-5
    )
    points = [" ".join(sentence.split()[:14]).count(".") for sentence in SENTENCES]
    share = np.mean([p / length for p, length in zip(points, lengths, strict=True)])
    assert report["uniform_attention"]["punctuation"] == pytest.approx(share, abs=6e-5)


def test_norms_and_modulus_are_of_plain_vectors_and_of_two_dropout_views(monkeypatch):
    model = two_layers()
    report = diagnose_towers(model, SENTENCES)
    parts = joined(inspect(model, SENTENCES))
    h = np.stack([hidden[:, -1, 0] for _, hidden, _ in parts], axis=1)
    pooler = model.params["pooler"]
    p = np.tanh(np.einsum("knd,kde->kne", h, pooler["kernel"]) + pooler["bias"][:, None])
    for name, vectors in (("vector_norm", h), ("pooler_norm", p)):
        norms = [[np.sqrt(sum(x * x)) for x in tower] for tower in vectors]
        np.testing.assert_allclose(report[name], np.mean(norms, axis=1), atol=1e-4)
    for name in ("vector_modulus_ratio", "pooler_modulus_ratio"):
        assert all(0.3 < ratio < 0.9999 for ratio in report[name])
    assert diagnose_towers(model, SENTENCES) == report
    other = diagnose_towers(model, SENTENCES, seed=1)
    assert other["pooler_modulus_ratio"] != report["pooler_modulus_ratio"]
    assert other["pooler_norm"] == report["pooler_norm"]

    monkeypatch.setattr(inspection, "DROPOUT", 0.0)
    calm = diagnose_towers(model, SENTENCES)
    assert calm["pooler_modulus_ratio"] == calm["vector_modulus_ratio"] == [1, 1]
    apart = [
        np.linalg.norm(a - b) / (np.linalg.norm(a) + np.linalg.norm(b))
        for a, b in zip(p[0], p[1], strict=True)
    ]
    assert calm["tower_modulus_difference"] == pytest.approx(np.mean(apart), abs=1e-4)


def embedded(members):
    return embed_pairs(SentenceEncoder.of(members).encode, pairs_of(SENTENCES))


def test_diagnosis_of_an_ensemble():
    members = [Member(0.3, tiny_model(1, pooling="mean")), Member(0.7, tiny_model(2))]
    report = json.loads(json.dumps(diagnose(members, embedded(members)), allow_nan=False))
    single, twin = report["members"]
    assert "crossed" not in single and "tower_modulus_difference" not in single
    assert "crossed" in twin and single["pooling"] == "mean"
    distinct = len(set(SENTENCES))
    assert report["embeddings"]["sentences"] == single["sentences"] == distinct


def test_sentences_that_are_looked_at_are_drawn_by_the_seed(monkeypatch):
    looked_at = []
    members = [Member(1.0, tiny_model())]
    found = embedded(members)
    monkeypatch.setattr(inspection, "diagnose_embeddings", lambda *_: {"protocol": ""})
    monkeypatch.setattr(
        inspection, "diagnose_towers", lambda model, chosen, **rest: looked_at.append(chosen)
    )
    for seed in (0, 0, 1):
        diagnose(members, found, seed=seed, sentences=8)
    one, same, other = looked_at
    assert one == same != other and len(set(one)) == 8
    assert [x for x in dict.fromkeys(SENTENCES[0::2] + SENTENCES[1::2]) if x in one] == one
    with pytest.raises(UserError, match="sentences = 0"):
        diagnose(members, found, sentences=0)


def test_streams_cross_as_in_training_where_that_is_known(tmp_path):
    model = two_layers()
    assert default_cross(model) == Cross("side", "value", 2)
    twelve = dataclasses.replace(model.bank.architecture, num_layers=12)
    bank = dataclasses.replace(model.bank, architecture=twelve)
    assert default_cross(dataclasses.replace(model, bank=bank)) == Cross("side", "value", 6)
    trained = dataclasses.replace(model, folder=tmp_path)
    assert default_cross(trained) == default_cross(model)
    for cross, expected in (
        (Cross("main", "probs", 1), Cross("main", "probs", 1)),
        (Cross("off"), default_cross(model)),
    ):
        config = Config(model=ModelConfig(cross=cross))
        (tmp_path / "train_config.json").write_text(to_json(config))
        assert default_cross(trained) == expected
    with pytest.raises(UserError, match="num_layers = 3 does not divide"):
        next(inspect(two_layers(cross=Cross(num_layers=3)), SENTENCES, crossed=True))


def test_punctuation_is_whole_tokens_of_it_in_any_vocabulary():
    class Tokenizer:
        all_special_ids = (0,)
        texts = ("?", " ,", "##!", "##", "a.", "—", "$", "[CLS]", " ", "", "…", "7", "\ufffd")

        def decode(self, ids):
            return self.texts[ids[0]]

    tokens = np.array([range(13), range(13)])
    mask = np.ones((2, 13), bool)
    mask[1, 5:] = False
    found = find_punctuation(Tokenizer(), tokens, mask)
    assert np.flatnonzero(found[0]).tolist() == [1, 2, 3, 5, 6, 10]
    assert np.flatnonzero(found[1]).tolist() == [1, 2, 3]
