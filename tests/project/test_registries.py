"""A pretend suite, objective and family: each is its own code and its line in a registry."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import end, start_python
from runs import tiny_config
from safetensors.numpy import load_file
from tiny_models import tiny_model

from jtcse_jax import traits
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.families import registry
from jtcse_jax.families.bert import BERT
from jtcse_jax.store import exported, hf_config
from jtcse_jax.training import metrics, objectives, trainer

SUITE = '''
import sys
from dataclasses import dataclass
from types import SimpleNamespace

from jtcse_jax.evaluation import suites
from jtcse_jax.evaluation.score_table import Table
from jtcse_jax.evaluation.suite import Options, Suite

@dataclass(frozen=True, kw_only=True)
class LengthOptions(Options):
    """Options."""

    words: str | None = None
    """A word to score."""

def make(words, options):
    def score(model):
        (vector,) = model.encode([words])
        return {"protocol": "first number", "figure": {words: float(vector[0])}}
    return SimpleNamespace(data={"name": words}, score=score)

suites.SUITES["first"] = Suite(
    name="first", options=LengthOptions, data="words", make=make, required="figure",
    headline=lambda result: result["figure"],
    tables=lambda found: [Table("First", ("model", "figure"), [[n, ""] for n, _ in found])],
)
from jtcse_jax import evaluate
from jtcse_jax.report.runs import read_results
from jtcse_jax.report.tables import score_tables

evaluate.main()
results, _ = read_results(sys.argv[-1])
assert [table.title for table in score_tables([], results, {})] == ["First"]
'''


def test_a_pretend_suite_is_scored_printed_and_reported(tmp_path):
    exported.export(tiny_model(1), tmp_path / "model")
    arguments = ["--model", tmp_path / "model", "--words", "river", "--output", tmp_path / "s.json"]
    status, out, err = end(start_python("-c", SUITE, *map(str, arguments)))
    assert status == 0, err
    expected = SentenceEncoder.load(tmp_path / "model").encode(["river"])[0, 0]
    found = json.loads((tmp_path / "s.json").read_text())
    assert found["first"]["figure"]["river"] == pytest.approx(float(expected), abs=1e-5)
    assert f"{expected:.2f}" in out.partition("\n{\n")[0]


def test_a_pretend_objective_trains(tmp_path, monkeypatch):
    def loss(bank, outputs, batch, key, config):
        length = jnp.square(outputs.hidden).mean()
        return length, {"length": length}

    pretend = objectives.Objective(objectives.plain_streams, loss, lambda *_: 0)
    monkeypatch.setitem(objectives.OBJECTIVES, "shorten", pretend)
    monkeypatch.setitem(traits.TRAITS, "shorten", traits.Traits())
    config = tiny_config(tmp_path, objective=ObjectiveConfig(name="shorten"))
    trainer.train(config, devices=jax.devices()[:1])
    lines = metrics.read_jsonl(tmp_path / "run" / "metrics.jsonl")
    lengths = [line["length"] for line in lines if "length" in line]
    assert lengths == sorted(lengths, reverse=True) and lengths[-1] < lengths[0]


def test_a_pretend_family_is_written_and_loaded(tmp_path, monkeypatch):
    names = dataclasses.replace(BERT.names, layers="blocks")
    fields = BERT.fields | {"hidden_size": "width"}
    pretend = dataclasses.replace(BERT, name="pretend", names=names, fields=fields)
    monkeypatch.setitem(registry.FAMILIES, "pretend", pretend)
    model = tiny_model(2)
    architecture = dataclasses.replace(model.bank.architecture, family="pretend")
    bank = dataclasses.replace(model.bank, architecture=architecture)
    exported.export(dataclasses.replace(model, bank=bank), tmp_path / "model")
    tower = tmp_path / "model" / "tower_1"
    config = json.loads((tower / "config.json").read_text())
    assert config["model_type"] == "pretend" and config["width"] == 16
    assert "blocks.0.output.dense.weight" in load_file(tower / "model.safetensors")
    assert hf_config.read_architecture(tower) == architecture
    expected = SentenceEncoder.of(model).encode(["the old river"])
    found = SentenceEncoder.load(tmp_path / "model").encode(["the old river"])
    np.testing.assert_allclose(found, expected, atol=1e-5)
