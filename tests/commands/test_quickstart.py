"""Three queries before and after a run."""

import dataclasses

import pytest
from runs import tiny_config
from tiny_models import tiny_model

from jtcse_jax import quickstart
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.evaluation.sts import builtin_dev
from jtcse_jax.store import exported, saved_model


@pytest.fixture
def model(tmp_path):
    exported.export(tiny_model(1, pooling="mean", serving_length=32), tmp_path / "model")
    return saved_model.load(tmp_path / "model")


def test_nearest_is_that_of_all_cosines(model):
    pairs = builtin_dev()
    sentences = sorted({*pairs.first, *pairs.second})
    encode = SentenceEncoder.of(model).encode
    queries, all_vectors = (
        encode(texts, normalize_embeddings=True) for texts in (quickstart.QUERIES, sentences)
    )
    cosines = queries @ all_vectors.T
    for (sentence, score), row in zip(quickstart.nearest(model), cosines, strict=True):
        assert score == pytest.approx(row.max(), abs=1e-5)
        assert row[sentences.index(sentence)] == pytest.approx(row.max(), abs=1e-5)


def test_start_and_run_are_shown_in_the_pooling_of_the_run(model, tmp_path, monkeypatch, capsys):
    config = tiny_config(tmp_path, workdir=str(model.folder))
    config = dataclasses.replace(
        config, model=dataclasses.replace(config.model, towers=("start", "other"))
    )
    load, pooled = saved_model.load, []

    def load_either(name, pooling=None):
        pooled.append(pooling)
        return "start" if name == "start" else load(name)

    monkeypatch.setattr(quickstart.saved_model, "load", load_either)
    shown = {"start": ("By the start.", 0.25)}
    monkeypatch.setattr(
        quickstart, "nearest", lambda each: [shown.get(str(each), ("By the run.", 0.75))] * 3
    )
    quickstart.show(config)
    printed = capsys.readouterr().out
    assert all(query in printed for query in quickstart.QUERIES)
    assert printed.count("By the start.") == printed.count("By the run.") == 3
    assert printed.count("0.250") == printed.count("0.750") == 3
    assert pooled == [None, "mean"]


def test_random_towers_have_no_examples(tmp_path, capsys):
    quickstart.show(tiny_config(tmp_path))
    assert capsys.readouterr().out == ""
