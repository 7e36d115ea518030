"""Three queries before and after a run."""

import sys

import pytest
from runs import tiny_config
from test_encoder import tiny_model

from jtcse_jax import config_file, examples, exported
from jtcse_jax.encoder import SentenceEncoder
from jtcse_jax.evaluation.sts import builtin_dev


@pytest.fixture
def folder(tmp_path):
    exported.export(tiny_model(1, pooling="mean", serving_length=32), tmp_path / "model")
    return tmp_path / "model"


def test_nearest_is_that_of_all_cosines(folder):
    pairs = builtin_dev()
    sentences = sorted({*pairs.first, *pairs.second})
    encode = SentenceEncoder.load(folder).encode
    queries, all_vectors = (
        encode(texts, normalize_embeddings=True) for texts in (examples.QUERIES, sentences)
    )
    cosines = queries @ all_vectors.T
    for (sentence, score), row in zip(examples.nearest(str(folder)), cosines, strict=True):
        assert score == pytest.approx(row.max(), abs=1e-5)
        assert row[sentences.index(sentence)] == pytest.approx(row.max(), abs=1e-5)


def test_the_command_shows_start_and_run(folder, tmp_path, monkeypatch, capsys):
    config = tiny_config(tmp_path, workdir="after")
    monkeypatch.setattr(config_file, "parse", lambda *_: config)
    found = {"scratch": ("By the start.", 0.25), "after": ("By the run.", 0.75)}
    monkeypatch.setattr(examples, "nearest", lambda name: [found[name]] * 3)
    monkeypatch.setattr(sys, "argv", ["examples"])
    examples.main()
    printed = capsys.readouterr().out
    for query in examples.QUERIES:
        assert query in printed
    assert printed.count("By the start.") == printed.count("By the run.") == 3
    assert printed.count("0.250") == printed.count("0.750") == 3
