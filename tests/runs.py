"""A run small enough for tests: two tiny towers on a text that the test writes."""

import dataclasses
import itertools
from pathlib import Path

import jax
import numpy as np

from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.config import Config, DataConfig, ModelConfig, ObjectiveConfig, OptimizerConfig
from jtcse_jax.models.towers import Params
from jtcse_jax.pipeline_config import Pipeline
from jtcse_jax.store import saved_model
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.store.workdir import CHECKPOINTS

ANIMALS = ("cat", "dog", "horse", "bird", "fish", "mouse", "goat", "snake")
VERBS = ("sees", "likes", "follows", "avoids", "hears")
PLACES = ("in the garden", "near the old river", "at night", "behind a big red house")


def write_text(path: Path) -> Path:
    """Writes 160 different sentences, one a line."""
    triples = itertools.product(ANIMALS, VERBS, PLACES)
    lines = [f"The {animal} {verb} someone {place}." for animal, verb, place in triples]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def write_dev(path: Path) -> Path:
    """Writes 20 scored pairs."""
    lines = [
        f"The {ANIMALS[i % 8]} sees me at night.\tThe {ANIMALS[j % 8]} sees you at night.\t{score}"
        for i, j, score in ((i, i + i % 6, 5 - i % 6) for i in range(20))
    ]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


# Two towers of two layers, from scratch.
MODEL = ModelConfig(
    towers=("scratch", "scratch"),
    scratch=Architecture(
        vocab_size=200,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=32,
        max_positions=32,
    ),
    cross=Cross(num_layers=1),
)
# Two views of at most 16 tokens fit every row, so all batches have one shape and a run compiles its
# step once.
DATA = DataConfig(max_len=16, row_length=32, slots=2, batch_size=8)
OPTIMIZER = OptimizerConfig(learning_rate=1e-3)


def tiny_config(folder: Path, **fields) -> Config:
    """Ten steps of eight sentences, on a text and a dev set in `folder`; `fields` override."""
    config = Config(
        workdir=str(folder / "run"),
        model=MODEL,
        data=dataclasses.replace(
            DATA,
            source=str(write_text(folder / "text.txt")),
            dev=str(write_dev(folder / "dev.tsv")),
            cache_dir=str(folder / "cache"),
        ),
        objective=ObjectiveConfig(name="jtcse"),
        optimizer=OPTIMIZER,
        max_steps=10,
        eval_every=4,
        save_every=2,
        log_every=2,
        keep=10,
    )
    return dataclasses.replace(config, **fields)


def saved_params(workdir: Path | str, step: int | None = None) -> Params:
    """The towers' parameters of a workdir's step, by default the newest."""
    with Checkpoints(Path(workdir) / CHECKPOINTS, read_only=True) as checkpoints:
        step = checkpoints.newest_step() if step is None else step
    return jax.tree.map(np.asarray, saved_model.load(workdir, step=step).params)


def largest_difference(one: Params, two: Params) -> float:
    """Over all parameters of two banks."""
    differences = jax.tree.map(lambda a, b: float(np.abs(a - b).max()), one, two)
    return max(jax.tree.leaves(differences))


def make_pipeline(folder: Path, **fields) -> Pipeline:
    """A language model, two towers from it, and a student; two steps each."""
    base = tiny_config(folder, max_steps=2, eval_every=2, save_every=2)
    data = dataclasses.replace(base.data, source="", dev=None, cache_dir="unused")

    def stage(name: str, towers: tuple[str, ...], pairs: str = "same", **objective):
        return dataclasses.replace(
            base,
            model=dataclasses.replace(base.model, towers=towers),
            data=dataclasses.replace(data, pairs=pairs),
            objective=ObjectiveConfig(name=name, **objective),
        )

    pipeline = Pipeline(
        workdir=str(folder / "pipeline"),
        stages={
            "language": stage("mlm", ("scratch",), pairs="none"),
            "twin": stage("tncse", ("language", "language")),
            "student": stage("distill", ("twin#1",), teacher="twin"),
        },
        source=base.data.source,
        dev=base.data.dev,
        cache_dir=str(folder / "cache"),
    )
    return dataclasses.replace(pipeline, **fields)
