"""Whole runs: resuming, choosing a step, devices, and what goes wrong."""

import csv
import dataclasses
import itertools
import json
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from processes import start, wait_for
from runs import ANIMALS, largest_difference, saved_params, tiny_config
from tiny_models import tiny_model

from jtcse_jax.config import DataConfig, ModelConfig, ObjectiveConfig, OptimizerConfig
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation import development
from jtcse_jax.evaluation.development import Development
from jtcse_jax.evaluation.diagnostics import anisotropy
from jtcse_jax.evaluation.inspection import layer_figures
from jtcse_jax.store import saved_model
from jtcse_jax.store.card import read_card
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.store.model_card import card_text
from jtcse_jax.store.workdir import CHECKPOINTS
from jtcse_jax.training import trainer
from jtcse_jax.training.run_record import check_config, record
from jtcse_jax.training.stage_scores import stage_row, verdict
from jtcse_jax.training.trainer import train


def one_device():
    return jax.devices()[:1]


def read_metrics(config) -> list[dict]:
    path = Path(config.workdir) / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_run_leaves_an_encoder_and_its_log(finished, capsys):
    encoder = SentenceEncoder.load(finished.workdir)
    assert encoder.encode(["The cat sees me.", "A dog."]).shape == (2, 16)
    lines = read_metrics(finished)
    assert [line["step"] for line in lines if "dev_spearman" in line] == [0, 4, 8, 10]
    diagnostics = {"dev_uniformity", "dev_alignment", "dev_effective_rank", "dev_anisotropy"}
    assert all(diagnostics <= line.keys() for line in lines if "dev_spearman" in line)
    trained = [line for line in lines if "loss" in line]
    assert [line["step"] for line in trained] == [2, 4, 6, 8, 10]
    for line in trained:
        assert line["loss"] == pytest.approx(line["nce"] + line["icnce"] + line["ictm"], rel=1e-4)
        assert {"alignment", "uniformity", "grad_norm"} <= line.keys()
    assert trained[-1]["loss"] < trained[0]["loss"]
    assert list((Path(finished.workdir) / "tensorboard").iterdir())
    (ran,) = (Path(finished.workdir) / "environment.jsonl").read_text().splitlines()
    assert json.loads(ran)["step"] == 0 and json.loads(ran)["jax"] == jax.__version__
    written = json.loads((Path(finished.workdir) / "train_config.json").read_text())
    assert written["optimizer"]["learning_rate"] == 1e-3


def test_step_taken_is_the_best_by_dev_score_unless_asked(finished):
    scores = {x["step"]: x["dev_spearman"] for x in read_metrics(finished) if "dev_spearman" in x}
    best = max(scores, key=lambda step: (scores[step], step))
    assert f"step {best} (best" in saved_model.load(finished.workdir).source
    assert "step 6 (requested)" in saved_model.load(finished.workdir, step=6).source
    six, ten = saved_params(finished.workdir, 6), saved_params(finished.workdir, 10)
    assert largest_difference(six, ten) > 1e-4


def test_resumed_run_is_bit_identical(finished, tmp_path):
    config = tiny_config(tmp_path, max_steps=6)
    train(config, devices=one_device())
    train(dataclasses.replace(config, max_steps=10), devices=one_device())
    assert largest_difference(saved_params(config.workdir), saved_params(finished.workdir)) == 0
    steps = [line["step"] for line in read_metrics(config) if "loss" in line]
    assert steps == [2, 4, 6, 8, 10]


def test_a_second_run_with_another_seed_compiles_nothing(tmp_path, caplog):
    def compiled(name: str, **fields) -> set[str]:
        (tmp_path / name).mkdir()
        caplog.clear()
        with jax.log_compiles():
            train(tiny_config(tmp_path / name, max_steps=1, **fields), devices=one_device())
        return {line.split()[1] for line in caplog.messages if line.startswith("Compiling ")}

    compiled("first")
    assert not compiled("second", seed=7)
    assert "jit(train_step)" in compiled("third", optimizer=OptimizerConfig(learning_rate=0.5))


def test_pairs_of_a_table_train_as_those_of_lines(tmp_path):
    base = tiny_config(tmp_path, max_steps=2)
    sentences = open(base.data.source).read().splitlines()
    pairs = list(zip(sentences, reversed(sentences), strict=True))
    (tmp_path / "pairs.tsv").write_text("".join(f"{a}\t{b}\n" for a, b in pairs))
    with open(tmp_path / "pairs.csv", "w", newline="") as file:
        csv.writer(file).writerows([("id", "a", "b"), *((i, *p) for i, p in enumerate(pairs))])
    for suffix, columns in (("tsv", ()), ("csv", ("a", "b"))):
        data = {"source": str(tmp_path / f"pairs.{suffix}"), "columns": columns}
        train(
            dataclasses.replace(
                base,
                workdir=str(tmp_path / suffix),
                data=dataclasses.replace(base.data, **data),
            ),
            devices=one_device(),
        )
    assert largest_difference(saved_params(tmp_path / "tsv"), saved_params(tmp_path / "csv")) == 0


def test_run_in_micro_batches_is_the_same_where_nothing_is_drawn(tmp_path, capsys):
    """Without dropout; with it the masks are others, as the rows are."""
    ended = []
    for name, micro_batch in (("whole", None), ("micro", 4)):
        (tmp_path / name).mkdir()
        config = tiny_config(tmp_path / name, optimizer=OptimizerConfig(learning_rate=3e-5))
        model = dataclasses.replace(config.model, dropout=0.0, attention_dropout=0.0)
        data = dataclasses.replace(config.data, micro_batch=micro_batch, dev=None)
        config = dataclasses.replace(config, model=model, data=data, max_steps=4)
        train(config, devices=one_device())
        ended.append((saved_params(config.workdir), read_metrics(config)))
    assert "8 sentences a batch, 4 at a time in" in capsys.readouterr().out
    (whole, lines), (micro, others) = ended
    assert largest_difference(whole, micro) < 1e-5
    for one, other in zip(lines, others, strict=True):
        name = "loss" if "loss" in one else "text_anisotropy"
        assert other[name] == pytest.approx(one[name], rel=1e-4)


def test_repeated_views_are_bounded_by_the_positions_of_the_model(tmp_path, monkeypatch):
    class Stopped(Exception):
        pass

    def stop(config, batches, *others):
        raise Stopped(batches.row_length)

    monkeypatch.setattr(trainer.announce, "say_start", stop)
    config = tiny_config(tmp_path)
    scratch = dataclasses.replace(config.model.scratch, max_positions=70)
    data = dataclasses.replace(config.data, pairs="repeat", max_len=64, row_length=None, dev=None)
    model = dataclasses.replace(config.model, scratch=scratch)
    with pytest.raises(Stopped, match="^72$"):
        train(dataclasses.replace(config, model=model, data=data), devices=one_device())


def careful_config(folder: Path):
    """Small steps, because AdamW turns a gradient's rounding into a whole step.

    Three of the shorter views share a row, so on one device some batches need more rows than others
    and the step is compiled for two shapes.
    """
    folder.mkdir()
    config = tiny_config(folder, optimizer=OptimizerConfig(learning_rate=3e-5))
    return dataclasses.replace(config, data=dataclasses.replace(config.data, slots=3))


@pytest.fixture(scope="module")
def careful(tmp_path_factory):
    """The config of such a run, finished on one device; tests only read its workdir."""
    config = careful_config(tmp_path_factory.mktemp("careful") / "run")
    train(config, devices=one_device())
    return config


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 8])
def test_same_run_on_many_devices_is_equal_to_rounding(careful, tmp_path, count):
    config = careful_config(tmp_path / "run")
    train(config, devices=jax.devices()[:count])
    assert largest_difference(saved_params(careful.workdir), saved_params(config.workdir)) < 1e-5
    for one, two in zip(read_metrics(careful), read_metrics(config), strict=True):
        if "loss" in one:
            assert two["loss"] == pytest.approx(one["loss"], rel=1e-4)


@pytest.mark.slow
def test_run_resumes_on_other_devices(careful, tmp_path):
    config = careful_config(tmp_path / "run")
    train(dataclasses.replace(config, max_steps=6), devices=one_device())
    train(dataclasses.replace(config, tower_devices=2), devices=jax.devices()[:4])
    assert largest_difference(saved_params(careful.workdir), saved_params(config.workdir)) < 1e-5


def test_without_dev_set_the_newest_step_is_taken_and_it_says_so(tmp_path, capsys):
    config = tiny_config(tmp_path, max_steps=4)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dev=None))
    train(config, devices=one_device())
    said = capsys.readouterr().out
    assert "no best step is selected" in said and "collapsed" not in said and "To use it" in said
    assert "step 4 (newest" in saved_model.load(config.workdir).source


def test_a_run_without_dev_set_tells_that_it_collapsed(tmp_path, capsys, monkeypatch):
    """By the mean cosine of the text's own sentences."""
    monkeypatch.setattr(development, "COLLAPSED", -1.0)
    config = tiny_config(tmp_path, max_steps=2)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, dev=None))
    train(config, devices=one_device())
    said = capsys.readouterr().out
    text = list(dict.fromkeys(Path(config.data.source).read_text().splitlines()))
    cosine = anisotropy(SentenceEncoder.load(config.workdir).encode(text[:256]))
    assert f"mean cosine of different sentences of the text: {cosine:.4f}; collapsed" in said
    assert "not worth using" in said and "To use it" not in said
    row = stage_row("only", config)
    (line,) = verdict({"only": config}, {"only": row}, "only")
    assert "stage only has collapsed" in line
    card = read_card(saved_model.load(config.workdir))
    assert card.metrics["text_anisotropy"] == pytest.approx(cosine, abs=1e-6)
    assert "collapsed" in card_text(saved_model.load(config.workdir), card)


def test_of_a_language_model_it_says_what_it_is_for(tmp_path, capsys):
    data = dataclasses.replace(tiny_config(tmp_path).data, dev=None, pairs="none")
    config = tiny_config(tmp_path, max_steps=2, objective=ObjectiveConfig(name="mlm"), data=data)
    train(config, devices=one_device())
    said = capsys.readouterr().out
    assert "a language model" in said and "To use it" not in said and "cosine" not in said


def test_not_finite_loss_stops_and_saves_nothing_of_it(tmp_path):
    config = tiny_config(tmp_path, optimizer=OptimizerConfig(learning_rate=1e30))
    with pytest.raises(UserError, match=r"step \d+ is not finite .*nce.*(no|last good) checkpoint"):
        train(config, devices=one_device())
    with Checkpoints(Path(config.workdir) / CHECKPOINTS) as checkpoints:
        for step in checkpoints.steps():
            params = saved_params(config.workdir, step)
            assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))


def test_other_config_in_the_same_workdir_is_refused(finished):
    changed = dataclasses.replace(finished, seed=1)
    with pytest.raises(UserError, match=r"seed \(was 42, now 1\)"):
        train(changed, devices=one_device())


def test_dev_score_in_training_is_that_of_the_saved_step(tmp_path):
    """On sentences that are longer than those of training; then with another length."""
    config = tiny_config(tmp_path, max_steps=2, eval_every=2)
    same = "The old big red house near the river behind the garden at night sees the"
    pairs = enumerate(itertools.combinations(ANIMALS, 2))  # no two of one cosine
    lines = [f"{same} {one}.\t{same} {two}.\t{i % 5}\n" for i, (one, two) in pairs]
    Path(config.data.dev).write_text("".join(lines))
    train(config, devices=one_device())
    dev = Development(config.data.dev)
    encoder = SentenceEncoder.load(config.workdir, step=2)
    logged = {x["step"]: x["dev_spearman"] for x in read_metrics(config) if "dev_spearman" in x}
    assert dev.score(encoder.encode).spearman == pytest.approx(logged[2], abs=1e-6)
    assert encoder.truncated == 0
    short = SentenceEncoder.load(config.workdir, step=2, max_len=config.data.max_len)
    assert dev.score(short.encode).spearman != pytest.approx(logged[2], abs=1e-3)
    model = dataclasses.replace(config.model, serving_length=20, pooling="mean")
    train(dataclasses.replace(config, model=model, force=True), devices=one_device())
    described = saved_model.load(config.workdir)
    assert (described.serving_length, described.bank.pooling) == (20, "mean")


def test_what_a_config_leaves_to_its_start_is_no_other_config(tmp_path):
    """Whether it is named or not, and for a workdir of a time with another default."""
    config = tiny_config(tmp_path)

    def with_model(**fields):
        return dataclasses.replace(config, model=dataclasses.replace(config.model, **fields))

    model = tiny_model(2, pooling="mean", serving_length=30)
    saved_model.describe_workdir(tmp_path, model.bank, model.serving_length)
    for begun in (config, with_model(pooling="mean"), with_model(serving_length=30)):
        record(tmp_path, begun, {})
        check_config(tmp_path, config)
        check_config(tmp_path, with_model(pooling="mean", serving_length=30))
        with pytest.raises(UserError, match=r"model.pooling \(was mean, now cls\)"):
            check_config(tmp_path, with_model(pooling="cls"))
        with pytest.raises(UserError, match=r"model.serving_length \(was 30, now 31\)"):
            check_config(tmp_path, with_model(serving_length=31))


@pytest.mark.slow
def test_simcse_tower_starts_a_twin(tmp_path):
    stages = []
    for seed in (1, 2):
        config = tiny_config(
            tmp_path,
            workdir=str(tmp_path / f"tower_{seed}"),
            objective=ObjectiveConfig(name="simcse", mlp_head=True),
            seed=seed,
            max_steps=4,
        )
        model = dataclasses.replace(config.model, towers=("scratch",))
        train(dataclasses.replace(config, model=model), devices=one_device())
        stages.append(config.workdir)
    twin = tiny_config(tmp_path, model=ModelConfig(towers=tuple(stages)), max_steps=2)
    twin = dataclasses.replace(
        twin,
        model=dataclasses.replace(twin.model, cross=tiny_config(tmp_path).model.cross),
        optimizer=OptimizerConfig(learning_rate=1e-9),
        eval_layers=True,
    )
    train(twin, devices=one_device())
    *_, logged = [line for line in read_metrics(twin) if "dev_spearman" in line]
    sentences = list(dict.fromkeys(Development(twin.data.dev).pairs.first))[:32]
    figures = layer_figures(saved_model.load(twin.workdir), sentences)
    assert {"e_cls_plain_0", "e_cls_crossed_1", "cls_attention_1"} <= figures.keys()
    found = {name: logged[f"dev_{name}"] for name in figures}
    assert found == pytest.approx(figures, abs=2e-3)
    parts = [SentenceEncoder.load(stage).encode("The cat sees me.") for stage in stages]
    # Nearly nothing was learned, so the twin's vector is still the sum of its towers'.
    np.testing.assert_allclose(
        SentenceEncoder.load(twin.workdir).encode("The cat sees me."), sum(parts), atol=1e-5
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(data=DataConfig()), "data.source is not set"),
        (dict(eval_layers=True, data=DataConfig(source="text")), "eval_layers = True needs dev"),
        (dict(data=DataConfig(source="nowhere.txt")), "nowhere.txt"),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, change, message):
    with pytest.raises(UserError, match=message):
        train(tiny_config(tmp_path, **change), devices=one_device())


KILLED = {"max_steps": 10**6, "save_every": 1, "eval_every": 50, "log_every": 50, "keep": 3}


@pytest.mark.slow
def test_killed_at_five_random_moments_it_ends_as_an_uninterrupted_one(tmp_path):
    """Starts and saves included; tests/soak.py does it for an hour."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    checkpoints = killed / "run" / CHECKPOINTS
    random = np.random.default_rng()
    moments, newest = [], [0]
    for kill in range(7):
        process = start(killed, f"**{KILLED}")
        if kill < 2:  # the first compiles; the second tells what a start takes
            began = time.monotonic()
            wait_for(checkpoints, f"{newest[-1] + 2}*", process)  # what it saves at second
            start_seconds = time.monotonic() - began
        else:
            moments.append(random.uniform(0, 1.7 * start_seconds))
            process.join(moments[-1])
        assert process.is_alive(), process.exitcode
        process.kill()
        process.join()
        with Checkpoints(checkpoints, read_only=True) as saved:
            newest.append(saved.newest_step() or 0)
    assert newest == sorted(newest) and len(set(newest)) > 2, (moments, newest)
    last = newest[-1] + 3
    for folder, save_every in ((whole, last), (killed, 1)):
        fields = KILLED | {"max_steps": last, "save_every": save_every}
        train(tiny_config(folder, **fields), devices=one_device())
    difference = largest_difference(saved_params(whole / "run"), saved_params(killed / "run"))
    assert difference == 0, (moments, newest)
