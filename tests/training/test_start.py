"""The model that a run starts from: pooling, serving length, prompts and scaling."""

import dataclasses
import json
import logging
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import tiny_config
from tiny_models import tiny_model

from jtcse_jax.config import DataConfig, ModelConfig, ObjectiveConfig
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.development import Development
from jtcse_jax.store import exported, saved_model
from jtcse_jax.store.serving import Serving
from jtcse_jax.store.workdir import METRICS
from jtcse_jax.training.start import start_model
from jtcse_jax.training.trainer import train


def start_from(folder: Path, *towers: Path, **fields):
    """How a run starts from folders, with the fields of `model` and data.max_len = 9."""
    model = ModelConfig(towers=tuple(map(str, towers)), **fields)
    objective = ObjectiveConfig(name="simcse")
    config = tiny_config(folder, model=model, data=DataConfig(max_len=9), objective=objective)
    return start_model(config, None, folder / "run", resuming=False)


@pytest.fixture(scope="module")
def starts(tmp_path_factory):
    """Two folders with poolings and lengths of their own, and one that names no pooling."""
    folder = tmp_path_factory.mktemp("starts")
    exported.export(tiny_model(1, pooling="mean", serving_length=50), folder / "mean")
    exported.export(tiny_model(1, serving_length=30), folder / "cls")
    exported.export(tiny_model(2, pooling="mean", serving_length=40), folder / "two")
    return folder / "mean", folder / "cls", folder / "two" / "tower_0"


def test_pooling_and_serving_length_are_those_of_the_start_model(tmp_path, starts, caplog):
    caplog.set_level(logging.INFO, logger="jtcse_jax")
    mean, cls, plain = starts
    for towers, pooling, length in (
        ((mean, mean), "mean", 50),
        ((cls, plain), "cls", 30),
        ((plain,), "cls", 40),
    ):
        start = start_from(tmp_path, *towers)
        assert (start.pooling, start.serving_length) == (pooling, length)
    scratch = tiny_config(tmp_path).model
    config = tiny_config(tmp_path, model=dataclasses.replace(scratch, tokenizer=str(mean)))
    start = start_model(config, None, tmp_path / "run", resuming=False)
    assert (start.pooling, start.serving_length) == ("cls", 32)
    assert "model.pooling" not in caplog.text


def test_config_chooses_pooling_and_serving_length_and_a_line_tells(tmp_path, starts, caplog):
    caplog.set_level(logging.INFO, logger="jtcse_jax")
    mean, cls, plain = starts
    start = start_from(tmp_path, mean, cls, plain, pooling="cls", serving_length=200)
    assert (start.pooling, start.serving_length) == ("cls", 200)
    (line,) = [line for line in caplog.messages if "model.pooling" in line]
    assert line == f"model.pooling = cls, but {mean} was made for mean pooling"


def test_towers_of_different_poolings_need_a_choice(tmp_path, starts):
    mean, cls, _ = starts
    with pytest.raises(UserError, match=f"{mean} and {cls} differ in pooling .*model.pooling"):
        start_from(tmp_path, mean, cls)


def test_serving_length_above_the_positions_is_refused(tmp_path, starts):
    with pytest.raises(UserError, match="model.serving_length = 201 .*200 positions"):
        start_from(tmp_path, starts[0], serving_length=201)


SETTINGS = Serving(
    normalize=True,
    prompts={"query": "see: ", "old": "the old "},
    default_prompt_name="old",
    similarity="dot",
)


def test_prompts_and_scaling_are_those_of_the_start_model(tmp_path):
    """In a run, in its dev score, and after it: at step 0 the run is its start."""
    model = dataclasses.replace(tiny_model(1, pooling="mean"), serving=SETTINGS)
    exported.export(model, tmp_path / "start")
    config = tiny_config(
        tmp_path,
        model=ModelConfig(towers=(str(tmp_path / "start"),)),
        objective=ObjectiveConfig(name="simcse"),
        max_steps=1,
        eval_every=1,
    )
    train(config, devices=jax.devices()[:1])
    train(dataclasses.replace(config, max_steps=2), devices=jax.devices()[:1])  # resumed
    start = SentenceEncoder.load(tmp_path / "start")
    unchanged = SentenceEncoder.load(config.workdir, step=0)
    sentences = ["a cat sees a dog", "the night"]
    for options in ({}, {"prompt_name": "query"}):
        vectors = unchanged.encode(sentences, **options)
        np.testing.assert_allclose(vectors, start.encode(sentences, **options), atol=1e-6)
        np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-6)
    for step in (0, 2):
        model = saved_model.load(config.workdir, step=step)
        assert model.serving == SETTINGS
    exported.export(model, tmp_path / "end")
    assert saved_model.load(tmp_path / "end").serving == SETTINGS
    lines = map(json.loads, (Path(config.workdir) / METRICS).read_text().splitlines())
    scores = [line["dev_spearman"] for line in lines if "dev_spearman" in line]
    dev = Development(config.data.dev)
    assert scores[0] == pytest.approx(dev.score(start.encode).spearman, abs=1e-6)
