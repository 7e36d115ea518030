"""MTEB takes our encoder as it is, and an exported tower, and scores them as it scores others."""

import dataclasses
import importlib
import json
import socket
import sys

import jax
import numpy as np
import pytest
from local_tasks import NAMES, local_task, with_data
from tiny_models import cosine_scores, padded_vectors, some_sentences, tiny_model

from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.sts import Pairs, spearman
from jtcse_jax.store import ensemble, exported
from jtcse_jax.store.ensemble import Member

MODELS = {
    "twin": (Member(1.0, tiny_model(2)),),
    "tower": (Member(1.0, tiny_model(1)),),
    "ensemble": (Member(0.3, tiny_model(2)), Member(0.7, tiny_model(1))),
}


@pytest.fixture
def mteb():
    pytest.importorskip("datasets", reason="datasets is not installed")
    return pytest.importorskip("mteb", reason="mteb is not installed (requirements-dev.txt)")


@pytest.fixture(scope="module", params=MODELS)
def members(request):
    return MODELS[request.param]


@pytest.fixture
def no_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("there is no network")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


class Padded:
    """An encoder of MTEB's that shares no code with ours but the towers, nor any similarity."""

    def __init__(self, members, mteb):
        self.members = members
        self.mteb_model_meta = mteb.models.ModelMeta.create_empty({"name": "a/reference"})

    def encode(self, inputs, **kwargs):
        texts = [text for batch in inputs for text in batch["text"]]
        return sum(weight * padded_vectors(model, texts) for weight, model in self.members)

    def similarity(self, first, second):
        from mteb.similarity_functions import cos_sim

        return cos_sim(first, second)

    def similarity_pairwise(self, first, second):
        from mteb.similarity_functions import pairwise_cos_sim

        return pairwise_cos_sim(first, second)


@pytest.mark.slow
def test_it_is_an_encoder_for_mteb_and_no_search_engine(mteb, members):
    encoder = SentenceEncoder.of(members)
    assert isinstance(encoder, mteb.models.EncoderProtocol)
    # MTEB would search with it, by another `search` than its own.
    assert not isinstance(encoder, mteb.models.SearchProtocol)
    assert not isinstance(encoder, mteb.models.CrossEncoderProtocol)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_tasks_of_every_kind_score_it_as_an_encoder_written_apart(mteb, no_network, name):
    ours, theirs = (
        mteb.evaluate(encoder, local_task(name), cache=None).task_results[0].scores["test"]
        for encoder in (SentenceEncoder.of(MODELS["twin"]), Padded(MODELS["twin"], mteb))
    )
    assert [entry["hf_subset"] for entry in ours] == [entry["hf_subset"] for entry in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert 0.02 < one["main_score"] < 0.99
        np.testing.assert_allclose(one["main_score"], other["main_score"], atol=1e-4)


@pytest.mark.slow
def test_twins_towers_and_ensembles_all_run(mteb, no_network, members):
    ours, theirs = (
        mteb.evaluate(encoder, local_task("STSBenchmark"), cache=None).task_results[0].get_score()
        for encoder in (SentenceEncoder.of(members), Padded(members, mteb))
    )
    np.testing.assert_allclose(ours, theirs, atol=1e-4)


@pytest.mark.slow
def test_mteb_keeps_the_results_of_two_models_of_one_name_apart(mteb, tmp_path):
    cache = mteb.ResultCache(tmp_path)
    model = tiny_model(1)
    other = dataclasses.replace(model, params=jax.tree.map(lambda leaf: -leaf, model.params))
    encoders = [SentenceEncoder.of(each) for each in (model, other)]
    metas = [encoder.mteb_model_meta for encoder in encoders]
    assert metas[0].name == metas[1].name == "jtcse_jax/tiny"
    assert metas[0].revision == ensemble.fingerprint((Member(1.0, model),))
    scores = [
        mteb.evaluate(encoder, local_task("STSBenchmark"), cache=cache).task_results[0].get_score()
        for encoder in (*encoders, encoders[0])
    ]
    assert abs(scores[0] - scores[1]) > 0.01
    assert scores[2] == pytest.approx(scores[0], abs=1e-6)  # read from its file


@pytest.mark.slow
def test_what_it_says_of_itself(mteb, members):
    meta = SentenceEncoder.of(members).mteb_model_meta
    assert (meta.embed_dim, meta.max_tokens, meta.framework) == (16, 16, ["JAX"])
    assert meta.revision == ensemble.fingerprint(members)
    assert meta.name == "jtcse_jax/" + ("tiny" if len(members) == 1 else "0.3-tiny-0.7-tiny")


@pytest.mark.slow
def test_an_encoder_of_bare_banks_cannot_be_told_from_others(mteb):
    with pytest.raises(UserError, match="SentenceEncoder.load"):
        _ = SentenceEncoder(SentenceEncoder.of(tiny_model(1)).banks).mteb_model_meta


def test_without_mteb_one_line_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "mteb", None)
    monkeypatch.setitem(sys.modules, "mteb.models", None)
    with pytest.raises(UserError, match="pip install mteb"):
        _ = SentenceEncoder.of(tiny_model(1)).mteb_model_meta


class Batches(list):
    """What MTEB hands over: batches by column, and a data set of known length behind them."""

    dataset = range(50)


class Metadata:
    name, type = "SomeTask", "STS"


def test_batches_of_mteb_give_the_vectors_of_their_texts():
    encoder = SentenceEncoder.of(tiny_model(1))
    texts = some_sentences(50)
    batches = Batches({"text": texts[start : start + 7]} for start in range(0, 50, 7))
    found = encoder.encode(
        batches, task_metadata=Metadata, hf_split="test", hf_subset="en", batch_size=7
    )
    np.testing.assert_array_equal(found, encoder.encode(texts))


def test_batches_without_text_are_refused_by_the_name_of_their_task():
    encoder = SentenceEncoder.of(tiny_model(1))
    with pytest.raises(UserError, match="SomeTask has image but no text"):
        encoder.encode(Batches([{"image": [1]}]), task_metadata=Metadata)


def test_pairwise_similarity_is_the_cosine_of_each_row():
    encoder = SentenceEncoder.of(tiny_model(1))
    first, second = np.random.default_rng(0).standard_normal((2, 5, 16))
    second[3] = 0
    np.testing.assert_allclose(
        encoder.similarity_pairwise(first, second),
        np.diagonal(encoder.similarity(first, second)),
        atol=1e-12,
    )
    assert encoder.similarity_pairwise(first, second)[3] == 0
    with pytest.raises(UserError, match="5 and 4"):
        encoder.similarity_pairwise(first, second[:4])
    with pytest.raises(UserError, match="encode the sentences first"):
        encoder.similarity_pairwise(["a cat"], ["a dog"])


@pytest.mark.slow
def test_mteb_scores_an_exported_tower_as_we_do(mteb, tmp_path):
    exported.export(tiny_model(1), tmp_path / "out")
    encoder = SentenceEncoder.load(tmp_path / "out")
    task = with_data(mteb.get_task("STSBenchmark"))
    data = task.dataset["test"]
    pairs = Pairs(list(data["sentence1"]), list(data["sentence2"]), np.array(data["score"]))
    model = mteb.SentenceTransformerEncoderWrapper(str(tmp_path / "out"), device="cpu")
    result = mteb.evaluate(model, task, cache=None)
    theirs = result.task_results[0].scores["test"][0]["cosine_spearman"]
    assert 0.1 < theirs < 0.95
    np.testing.assert_allclose(
        theirs, spearman(cosine_scores(encoder.encode, pairs), pairs.gold), atol=1e-4
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["NFCorpus", "BUCC.v2"])
@pytest.mark.parametrize("prompt_type", ["query", "document", None])
def test_prompts_of_a_task_are_those_of_mtebs_own_encoder(mteb, tmp_path, name, prompt_type):
    exported.export(tiny_model(1), tmp_path / "out")
    settings = {
        "prompts": {"query": "the cat ", "BitextMining": "a dog ", "NFCorpus-query": "old "},
        "default_prompt_name": "query",
    }
    (tmp_path / "out" / "config_sentence_transformers.json").write_text(json.dumps(settings))
    texts = some_sentences(20)
    kinds = importlib.import_module("mteb.types").PromptType
    options = {
        "task_metadata": mteb.get_task(name).metadata,
        "hf_split": "test",
        "hf_subset": "default",
        "prompt_type": prompt_type and kinds(prompt_type),
    }
    theirs = mteb.SentenceTransformerEncoderWrapper(str(tmp_path / "out"), device="cpu")
    data = importlib.import_module("datasets").Dataset.from_dict({"text": texts})
    loader = importlib.import_module("torch.utils.data").DataLoader(data, batch_size=7)
    ours = SentenceEncoder.load(tmp_path / "out")
    found = ours.encode(loader, **options)
    np.testing.assert_allclose(found, theirs.encode(loader, **options), atol=1e-5)
