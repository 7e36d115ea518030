"""What the report shows of models: cosines, layers and nearest neighbours."""

import dataclasses
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import tiny_config
from tiny_models import cosine_scores, some_sentences, tiny_model

from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.evaluation import development
from jtcse_jax.evaluation.diagnostics import anisotropy, embed_pairs
from jtcse_jax.evaluation.examples import Examples
from jtcse_jax.evaluation.inspection import diagnose
from jtcse_jax.evaluation.sts import Pairs
from jtcse_jax.report import __main__ as report
from jtcse_jax.report.models import look_at, nearest_neighbours
from jtcse_jax.report.tables import embedding_table
from jtcse_jax.store import exported
from jtcse_jax.store.ensemble import Member
from jtcse_jax.training.trainer import train


def test_neighbours_are_the_nearest_others():
    sentences = [f"sentence {number}" for number in range(30)]
    vectors = np.random.default_rng(2).normal(size=(30, 4)).astype(np.float32)
    found = nearest_neighbours(sentences, vectors)
    assert [one.sentence for one in found] == [sentences[number] for number in range(0, 30, 5)]
    for one in found:
        query = vectors[sentences.index(one.sentence)]
        by_hand = sorted(
            (
                (float(query @ other / np.linalg.norm(query) / np.linalg.norm(other)), sentence)
                for other, sentence in zip(vectors, sentences, strict=True)
                if sentence != one.sentence
            ),
            reverse=True,
        )[:3]
        assert [sentence for _, sentence in one.nearest] == [sentence for _, sentence in by_hand]
        np.testing.assert_allclose(
            *([c for c, _ in side] for side in (one.nearest, by_hand)), atol=1e-6
        )


@pytest.mark.slow
def test_a_model_is_looked_at_as_the_diagnostics_and_a_slow_cosine_say(tmp_path, command):
    exported.export(tiny_model(2), tmp_path / "model")
    sentences = [sentence for sentence in dict.fromkeys(some_sentences(60)) if sentence]
    half = len(sentences) // 2
    first, second = sentences[:half], sentences[half : 2 * half]
    pairs = Pairs(first, second, np.arange(half) % 6.0)
    look = look_at(tmp_path / "model", Examples("some", pairs))
    model = tiny_model(2)
    encode = SentenceEncoder.of(model).encode
    np.testing.assert_allclose(look.cosines, cosine_scores(encode, pairs), atol=1e-5)
    vectors = dict(zip(sentences, encode(sentences), strict=True))
    for one in look.neighbours:
        for cosine, other in one.nearest:
            a, b = vectors[one.sentence], vectors[other]
            assert abs(cosine - a @ b / np.linalg.norm(a) / np.linalg.norm(b)) < 1e-5
    wanted = diagnose([Member(1.0, model)], embed_pairs(encode, pairs))["members"][0]["crossed"][
        "e_cls"
    ]
    found = look.diagnostics["members"][0]["crossed"]["e_cls"]
    np.testing.assert_allclose(found, wanted, atol=1e-3)
    lines = [f"{a}\t{b}\t{c}" for a, b, c in zip(first, second, pairs.gold, strict=True)]
    (tmp_path / "dev.tsv").write_text("\n".join(lines))
    output = tmp_path / "report.html"
    options = ("--dev", tmp_path / "dev.tsv", "--output", output)
    command(report, tmp_path / "model", *options)
    figures = look.diagnostics["embeddings"]
    values = embedding_table([("model", "", figures)]).rows[0][2:]
    cells = re.findall(r"<td>([^<]*)</td>", output.read_text())
    start = cells.index(values[0])
    assert cells[start : start + len(values)] == values


@pytest.mark.slow
def test_a_run_without_dev_set_is_looked_at_on_its_text(tmp_path, command, monkeypatch):
    config = tiny_config(tmp_path, max_steps=1)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dev=None))
    train(config, devices=jax.devices()[:1])
    monkeypatch.setattr(development, "COLLAPSED", 0.0)
    command(report, config.workdir, "--output", tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    sentences = list(dict.fromkeys(Path(config.data.source).read_text().splitlines()))[:512]
    assert f"inspected on {len(sentences)} sentences of {config.data.source}" in page
    assert sentences[0] in page and "its vectors have collapsed" in page
    assert "by gold score" not in page
    cosine = anisotropy(SentenceEncoder.load(config.workdir).encode(sentences))
    assert f"{cosine:.4g}" in page
    Path(config.data.source).unlink()
    command(report, config.workdir, "--output", tmp_path / "report.html")
    assert "pairs of builtin" in (tmp_path / "report.html").read_text()
