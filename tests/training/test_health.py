"""A run reports collapse, an easy text and a start that no step improves on."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from rich.console import Console
from runs import tiny_config

from jtcse_jax.config import Config, DataConfig, ModelConfig
from jtcse_jax.encoding import progress
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation import development
from jtcse_jax.evaluation.development import Development, read_cosines
from jtcse_jax.evaluation.sts import spearman
from jtcse_jax.store import saved_model
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.store.workdir import CHECKPOINTS
from jtcse_jax.training import announce
from jtcse_jax.training.announce import harder_batches
from jtcse_jax.training.callbacks import Callbacks
from jtcse_jax.training.stage_scores import stage_row, verdict, warning
from jtcse_jax.training.trainer import train


def one_device():
    return jax.devices()[:1]


def lines_of(config) -> list[dict]:
    text = (Path(config.workdir) / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def scored(tmp_path, monkeypatch, scores: dict[int, float], *, callbacks=None, **fields):
    """A finished run whose dev score at each step is the given one, and its result."""
    steps = iter(sorted(scores))

    def score(self, encode):
        rho = scores[next(steps)]
        cosines = np.linspace(0, 1, len(self.pairs))
        return development.DevScore(rho, rho - 0.1, rho + 0.1, {"dev_anisotropy": 0.1}, cosines)

    monkeypatch.setattr(Development, "score", score)
    config = tiny_config(tmp_path, **({"max_steps": 4, "eval_every": 2} | fields))
    return config, train(config, devices=one_device(), callbacks=callbacks)


def test_the_start_is_the_model_if_no_step_is_better(tmp_path, monkeypatch, capsys):
    config, _ = scored(tmp_path, monkeypatch, {0: 0.6, 2: 0.5, 4: 0.4})
    printed = capsys.readouterr().out
    assert "No step is better than the start" in printed and "To use it" not in printed
    assert "step 0 (best" in saved_model.load(config.workdir).source


def test_a_better_step_is_the_model_with_its_gain_over_the_start(tmp_path, monkeypatch, capsys):
    config, _ = scored(tmp_path, monkeypatch, {0: 0.6, 2: 0.7, 4: 0.4})
    printed = capsys.readouterr().out
    assert "60.00 [50.00, 70.00] at the start, 70.00" in printed and "To use it" in printed
    assert "+0.00 [+0.00, +0.00], within noise" in printed  # the cosines are the same
    assert "step 2 (best" in saved_model.load(config.workdir).source


def test_a_run_killed_after_its_start_resumes_there(tmp_path, monkeypatch):
    """The score of step 0 stays in the log, and the run is that of one go."""
    whole = tiny_config(tmp_path, workdir=str(tmp_path / "whole"), max_steps=4)
    train(whole, devices=one_device())
    broken = dataclasses.replace(whole, workdir=str(tmp_path / "broken"))
    with monkeypatch.context() as patched:
        patched.setattr(
            "jtcse_jax.training.loop.Loop._train", lambda *_: (_ for _ in ()).throw(OSError)
        )
        with pytest.raises(OSError):
            train(broken, devices=one_device())
    with Checkpoints(Path(broken.workdir) / CHECKPOINTS) as checkpoints:
        assert checkpoints.steps() == [0]
    train(broken, devices=one_device())
    scores = [
        [line["dev_spearman"] for line in lines_of(config) if "dev_spearman" in line]
        for config in (whole, broken)
    ]
    assert scores[0] == scores[1] and len(scores[0]) == 2


def test_a_collapsed_step_has_no_score_and_is_never_the_best(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(development, "COLLAPSED", 0.95)
    config = tiny_config(tmp_path, max_steps=4)  # random towers: all vectors are nearly equal
    train(config, devices=one_device())
    printed = capsys.readouterr().out
    assert "step 4  collapsed" in printed and "not worth using" in printed
    assert "To use it" not in printed
    (start, end) = (line for line in lines_of(config) if "dev_anisotropy" in line)
    assert min(start["dev_anisotropy"], end["dev_anisotropy"]) > 0.95
    assert "dev_spearman" not in start.keys() | end.keys()
    assert start["dev_collapsed"] == end["dev_collapsed"] == 1
    with Checkpoints(Path(config.workdir) / CHECKPOINTS) as checkpoints:
        assert checkpoints.best_step() is None and checkpoints.newest_step() == 4


def test_a_terminal_has_a_bar_of_steps(tmp_path, monkeypatch):
    """And none if the log goes to a file, where it would be between the lines."""
    for shown in (True, False):
        screen = io.StringIO()
        console = Console(file=screen, force_terminal=True)
        monkeypatch.setattr(progress, "_console", lambda console=console: console)
        monkeypatch.setattr(sys.stdout, "isatty", lambda shown=shown: shown, raising=False)
        folder = tmp_path / str(shown)
        folder.mkdir()
        train(tiny_config(folder, max_steps=2), devices=one_device())
        assert ("2/2" in screen.getvalue()) == shown


def test_contrast_that_is_near_zero_from_the_start_is_reported_once(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(announce, "NEAR_ZERO", 100.0)
    config = tiny_config(tmp_path, max_steps=4, eval_every=10)
    train(config, devices=one_device())
    train(dataclasses.replace(config, max_steps=6), devices=one_device())
    assert capsys.readouterr().out.count("contrastive loss is near zero") == 1


@pytest.mark.parametrize(("nce", "warnings"), [(0.02, 0), (0.005, 1)])
def test_contrast_is_near_zero_if_all_its_terms_are(nce, warnings, capsys):
    announce.warn_of_easy_contrast(Config(), {"loss": 0.0, "nce": nce, "icnce": 0.001})
    announce.warn_of_easy_contrast(Config(), {"loss": 0.0})  # no contrastive term
    assert capsys.readouterr().out.count("contrastive loss is near zero") == warnings


@pytest.mark.parametrize(
    ("tower", "batches", "advised"),
    [("a", "random", True), ("a", "similar", False), ("scratch", "random", False)],
)
def test_similar_batches_are_advised_only_to_runs_that_could_have_them(tower, batches, advised):
    config = Config(model=ModelConfig(towers=(tower,) * 2), data=DataConfig(batches=batches))
    assert ("data.batches = similar" in harder_batches(config)) == advised


def test_differences_are_paired_over_the_pairs_of_the_dev_set(finished):
    dev, workdir = Development(finished.data.dev), Path(finished.workdir)
    cosines = [read_cosines(workdir, step) for step in (0, 4, 8, 10)]
    rho = [spearman(each, dev.pairs.gold) for each in cosines]
    found = dev.difference((workdir, 4), (workdir, 0))
    assert found.mean == pytest.approx(rho[1] - rho[0], abs=1e-9)
    assert found.low <= found.mean <= found.high
    logged = [line["dev_spearman"] for line in lines_of(finished) if "dev_spearman" in line]
    assert rho == pytest.approx(logged)
    assert dev.difference((workdir, 4), (workdir, 3)) is None  # not kept


@pytest.fixture
def two_stages(tmp_path):
    """Two stages on one dev set, the second's cosines those of a random model."""
    random = np.random.default_rng(0)
    configs, rows = {}, {}
    for name, good in (("first", 1.0), ("second", 0.0)):
        (tmp_path / name).mkdir()
        config = tiny_config(tmp_path, workdir=str(tmp_path / name))
        dev = Development(config.data.dev)
        noise = random.normal(size=len(dev.pairs))
        cosines = good * dev.pairs.gold + noise
        for step, values in ((0, noise), (4, cosines)):
            development.keep_cosines(tmp_path / name, step, values)
        configs[name] = config
        rows[name] = {"step": 4, "dev": 100 * float(spearman(cosines, dev.pairs.gold))}
    return configs, rows


def test_a_stage_below_an_earlier_one_is_told_by_how_much(two_stages):
    configs, rows = two_stages
    assert warning("first", configs, rows | {"second": None}) is None
    found = warning("second", configs, rows)
    difference = rows["second"]["dev"] - rows["first"]["dev"]
    assert "below stage first" in found and f"{difference:+.2f} [" in found
    collapsed = rows | {"second": rows["second"] | {"dev": None}}
    assert "collapsed" in warning("second", configs, collapsed)


def test_the_last_lines_name_the_best_stage_and_what_is_exported(two_stages):
    configs, rows = two_stages
    best, exported = verdict(configs, rows, "second")
    assert "best stage on the dev set: first" in best and "from the start: +" in best
    assert "exported: stage second is below stage first" in exported
    _, tower = verdict(configs, rows, "first#0")
    assert tower == "exported: stage first#0"
    (best,) = verdict(configs, {"first": rows["first"]}, "first")
    assert "first" in best
    collapsed = {name: row | {"dev": None} for name, row in rows.items()}
    (line,) = verdict(configs, collapsed, "second")
    assert "exported: stage second has no dev score" in line


def test_the_start_is_the_step_of_a_stage_that_it_beats(tmp_path, monkeypatch):
    config, _ = scored(tmp_path, monkeypatch, {0: 0.6, 2: 0.4, 4: 0.5})
    row = stage_row("only", config)
    assert (row["step"], row["dev"]) == (0, 60.0)
    (line,) = verdict({"only": config}, {"only": row}, "only")
    assert "it is the start" in line


class Heard(Callbacks):
    """Records what a run reports."""

    def __init__(self):
        self.logged, self.scored, self.saved = {}, {}, []

    def on_log(self, step, metrics):
        self.logged[step] = metrics

    def on_evaluation(self, step, score):
        self.scored[step] = score.spearman

    def on_save(self, step):
        self.saved.append(step)


def test_callbacks_of_another_form_are_refused_at_once(tmp_path):
    with pytest.raises(UserError, match="callbacks is a list"):
        train(tiny_config(tmp_path), callbacks=[print])


def test_run_stops_when_patience_is_out_and_its_result_and_callbacks_agree_with_the_log(
    tmp_path, monkeypatch
):
    heard = Heard()
    scores = {0: 0.3, 2: 0.6, 4: 0.5, 6: 0.6, 8: 0.9}
    fields = {"max_steps": 8, "patience": 2, "save_every": 3, "log_every": 4}
    config, result = scored(tmp_path, monkeypatch, scores, callbacks=heard, **fields)
    assert heard.scored == {0: 0.3, 2: 0.6, 4: 0.5, 6: 0.6}
    assert heard.saved == [0, 2, 3, 4, 6]
    assert (result.step, result.dev_spearman) == (6, 0.6)  # of equal scores the later step
    assert result.encoder().encode("The cat sees me.").shape == (16,)
    trained = {line["step"]: line for line in result.history if "loss" in line}
    assert trained == {step: {"step": step} | line for step, line in heard.logged.items()}
    assert list(trained) == [4, 6]  # the last one although 6 is not a multiple of log_every
    train(config, devices=one_device())
    assert lines_of(config) == result.history  # nothing more was trained
    with pytest.raises(UserError, match="patience"):
        train(dataclasses.replace(config, data=dataclasses.replace(config.data, dev=None)))
