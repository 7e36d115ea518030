"""What a pipeline exports: a stage or one tower of it, with the scores of that step."""

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from checkpoints import flip_bit, largest_file
from runs import make_pipeline
from tiny_models import tiny_model, write_run, write_senteval

from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.sts import StsScore, evaluate_sts, load_sts
from jtcse_jax.training import stages
from jtcse_jax.training.stages import run


def test_one_tower_of_a_stage_is_exported_with_its_own_scores(tmp_path, monkeypatch):
    def train(config):
        workdir = write_run(Path(config.workdir), tiny_model(2), {2: 0.7})
        log = [{"step": 2, "dev_spearman": 0.7}]
        log += [{"step": 2, "loss": 1.0, "sentences_per_second": 4.0}]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))

    write_senteval(tmp_path / "STS")
    monkeypatch.setattr(stages, "train", train)
    pipeline = make_pipeline(tmp_path, sts=str(tmp_path / "STS"), export="twin#1")
    for other in ("language", "student"):
        del pipeline.stages[other]
    scratch = dataclasses.replace(pipeline.stages["twin"].model, towers=("scratch", "scratch"))
    pipeline.stages["twin"] = dataclasses.replace(pipeline.stages["twin"], model=scratch)
    (row,) = run(pipeline)
    model, tower = Path(pipeline.workdir) / "model", f"{Path(pipeline.workdir) / 'twin'}#1"
    texts = ["the cat sees", "an old river"]
    expected, found = (SentenceEncoder.load(each).encode(texts) for each in (tower, model))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    tasks, _ = load_sts(str(tmp_path / "STS"))
    scores = evaluate_sts(SentenceEncoder.load(tower).encode, tasks)
    expected = {task: round(100 * score.spearman, 2) for task, score in scores.items()}
    card = json.loads((model / "jtcse_card.json").read_text())
    assert card["scores"]["spearman"] == expected
    assert expected != {task: round(score, 2) for task, score in row["sts"].items()}
    with pytest.raises(UserError, match="model was exported from twin#1"):
        run(dataclasses.replace(pipeline, export="twin#0"))


def test_a_stage_that_is_not_there_cannot_be_exported(tmp_path):
    for name in ("twins", "twins#0", "#0"):
        with pytest.raises(UserError, match="--export .*language, twin, student"):
            make_pipeline(tmp_path, export=name)


def test_a_damaged_best_step_is_neither_scored_nor_exported(tmp_path, monkeypatch, capsys):
    """The row and the card tell of the step that was taken; damaged later, of the one after it."""

    def damage(workdir, step):
        flip_bit(largest_file(workdir / "checkpoints" / str(step)))

    def train(config):
        workdir = write_run(Path(config.workdir), tiny_model(1), {2: 0.7, 4: 0.5, 6: 0.3})
        log = [{"step": step, "dev_spearman": 0.9 - step / 10} for step in (2, 4, 6)]
        log += [{"step": 6, "loss": 1.0, "sentences_per_second": 4.0}]
        (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in log))
        damage(workdir, 2)

    write_senteval(tmp_path / "STS")
    monkeypatch.setattr(stages, "train", train)
    score = StsScore(0.5, 0.4, 10, {})
    monkeypatch.setattr(stages, "evaluate_sts", lambda encode, tasks: {"STS-B": score})
    pipeline = make_pipeline(tmp_path, sts=str(tmp_path / "STS"))
    for other in ("language", "student"):
        del pipeline.stages[other]
    scratch = dataclasses.replace(pipeline.stages["twin"].model, towers=("scratch", "scratch"))
    pipeline.stages["twin"] = dataclasses.replace(pipeline.stages["twin"], model=scratch)
    model, twin = (Path(pipeline.workdir) / name for name in ("model", "twin"))
    (row,) = run(pipeline)
    assert (row["step"], row["dev"], row["sts"]) == (4, 50.0, {"STS-B": 50.0})
    card = json.loads((model / "jtcse_card.json").read_text())
    assert card["step"] == 4 and card["scores"]["spearman"] == {"STS-B": 50.0}
    shutil.rmtree(model)
    damage(twin, 4)
    run(pipeline)
    card = json.loads((model / "jtcse_card.json").read_text())
    assert card["step"] == 6 and card["scores"] == {}
    said = capsys.readouterr().out
    assert (
        f"the model card has no scores: they are of step 4, but the model is {twin}, step 6 (best"
        in said
    )
