"""What goes wrong in real runs, injected: signals, a second run, another text, NaN, a hung disk."""

import dataclasses
import json
import os
import shutil
import signal
import socket
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from processes import SAVED, end, start, wait_for
from runs import largest_difference, saved_params, tiny_config

from jtcse_jax.data.batches import PackedBatches
from jtcse_jax.data.sources import open_source
from jtcse_jax.data.tokens import tokenize
from jtcse_jax.errors import Interrupted, Stopped, UserError
from jtcse_jax.runtime import run_lock
from jtcse_jax.store import saved_model
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.store.workdir import CHECKPOINTS
from jtcse_jax.training import loop
from jtcse_jax.training.train_step import TrainStep
from jtcse_jax.training.trainer import train

ONE_DEVICE = jax.devices()[:1]
LONG = "max_steps=4000, save_every=50, eval_every=5000, log_every=1000, keep=2"


def steps_of(workdir: Path | str) -> list[int]:
    with Checkpoints(Path(workdir) / CHECKPOINTS, read_only=True) as checkpoints:
        return checkpoints.steps()


def test_sigterm_saves_the_step_and_asks_to_be_started_again(tmp_path):
    process = start(tmp_path, LONG)
    checkpoints = tmp_path / "run" / CHECKPOINTS
    wait_for(checkpoints, SAVED, process)
    process.terminate()
    status, out, err = end(process)
    assert status == 75, err
    last = steps_of(tmp_path / "run")[-1]
    assert f"stopped by SIGTERM, step {last} is saved" in out and last >= 50
    config = tiny_config(tmp_path, max_steps=last + 2, save_every=1, eval_every=5000)
    train(config, devices=ONE_DEVICE)
    assert steps_of(config.workdir)[-1] == last + 2


def test_a_second_run_in_a_workdir_is_refused_until_the_first_has_died(tmp_path):
    process = start(tmp_path, LONG)
    wait_for(tmp_path / "run" / CHECKPOINTS, SAVED, process)
    other = tiny_config(tmp_path, max_steps=4000, save_every=50, eval_every=5000)
    who = f"process {process.pid} on {socket.gethostname()}"
    with pytest.raises(UserError, match=f"is in use by {who}: wait for it"):
        train(other, devices=ONE_DEVICE)
    process.kill()
    process.join()
    train(dataclasses.replace(other, max_steps=1), devices=ONE_DEVICE)


def test_lock_on_a_full_disk_is_one_sentence(tmp_path, largest_files):
    with (
        largest_files(0),
        pytest.raises(UserError, match=r"run\.lock cannot be written"),
    ):
        with run_lock.hold(tmp_path / "run"):
            pass
    with run_lock.hold(tmp_path / "run"):
        held = (tmp_path / "run" / run_lock.FILE).read_text()
    assert held == f"process {os.getpid()} on {socket.gethostname()}\n"


def test_changed_text_is_refused_and_forced(tmp_path, caplog):
    config = tiny_config(tmp_path, max_steps=2)
    train(config, devices=ONE_DEVICE)
    text = Path(config.data.source)
    text.write_text(text.read_text().replace("goat", "sheep"))
    longer = dataclasses.replace(config, max_steps=3)
    with pytest.raises(UserError, match="data.source is not the one that the run in .* began with"):
        train(longer, devices=ONE_DEVICE)
    train(dataclasses.replace(longer, force=True), devices=ONE_DEVICE)
    assert "continuing with another data.source" in caplog.text
    train(dataclasses.replace(longer, max_steps=4), devices=ONE_DEVICE)  # it is the run's text now


def test_changed_dev_set_is_refused(tmp_path):
    """Its scores would be compared with those of the set that was there before."""
    config = tiny_config(tmp_path, max_steps=2)
    train(config, devices=ONE_DEVICE)
    dev = Path(config.data.dev)
    dev.write_text(dev.read_text().replace("at night", "at noon"))
    with pytest.raises(UserError, match="data.dev is not the one that the run in .* began with"):
        train(dataclasses.replace(config, max_steps=3), devices=ONE_DEVICE)


def test_forced_config_goes_on_and_says_what_differs(tmp_path, caplog):
    config = tiny_config(tmp_path, max_steps=2)
    train(config, devices=ONE_DEVICE)
    changed = dataclasses.replace(config, seed=1, max_steps=3)
    with pytest.raises(UserError, match=r"seed \(was 42, now 1\).* or continue with --force"):
        train(changed, devices=ONE_DEVICE)
    train(dataclasses.replace(changed, force=True), devices=ONE_DEVICE)
    assert "continuing with another config: seed (was 42, now 1)" in caplog.text
    assert steps_of(config.workdir)[-1] == 3


@pytest.fixture
def poisoned(monkeypatch):
    """Makes the given steps of a run not finite, in the jitted step's own arithmetic."""

    def poison(*steps: int) -> None:
        real = TrainStep.__call__

        def call(self, state, batch, key):
            if int(state.step) + 1 not in steps:
                return real(self, state, batch, key)
            towers = state.params["towers"]
            norm = towers["embeddings"]["norm"]
            spoilt = towers["embeddings"] | {"norm": norm | {"bias": norm["bias"] + jnp.nan}}
            params = state.params | {"towers": towers | {"embeddings": spoilt}}
            bias = jnp.array(norm["bias"])  # the state is donated
            state, metrics = real(self, state._replace(params=params), batch, key)
            assert not metrics["finite"]
            state.params["towers"]["embeddings"]["norm"]["bias"] = bias
            return state, metrics

        monkeypatch.setattr(TrainStep, "__call__", call)

    return poison


def test_batch_that_is_not_finite_stops_and_is_kept(tmp_path, poisoned):
    config = tiny_config(tmp_path, eval_every=100)
    poisoned(7)
    with pytest.raises(UserError, match=r"step 7 is not finite .* step 6 in") as error:
        train(config, devices=ONE_DEVICE)
    (file,) = (Path(config.workdir) / loop.NOT_FINITE).iterdir()
    assert str(file) in str(error.value)
    with np.load(file) as saved:  # nothing in it needs pickle
        assert saved["tokens"].shape[1] == config.data.row_length
        texts = {line.lower().rstrip(" .") for line in open_source(config.data.source).read()}
        sentences = {str(sentence).rstrip(" .") for sentence in saved["sentences"]}
    assert len(sentences) == config.data.batch_size and sentences <= texts


def test_batches_that_are_not_finite_are_skipped_if_asked(tmp_path, poisoned, capsys):
    config = tiny_config(tmp_path, not_finite="skip", eval_every=100)
    poisoned(3, 4)
    train(config, devices=ONE_DEVICE)
    assert capsys.readouterr().out.count("; skipped") == 2
    lines = (Path(config.workdir) / "metrics.jsonl").read_text()
    assert "NaN" not in lines and json.loads(lines.splitlines()[-1])["step"] == 10
    params = saved_params(config.workdir)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(params))
    assert len(list((Path(config.workdir) / loop.NOT_FINITE).iterdir())) == 2


def test_skipping_has_an_end(tmp_path, poisoned):
    config = tiny_config(tmp_path, not_finite="skip", max_steps=30, eval_every=100)
    poisoned(*range(5, 31))
    with pytest.raises(UserError, match="step 14 is not finite"):
        train(config, devices=ONE_DEVICE)


def test_hung_disk_is_an_error_with_a_name(tmp_path):
    """A read that never ends; the process must end although the reading thread does not."""
    hanging = """
import threading
from jtcse_jax.data.tokens import TokenCache
whole = TokenCache.sentence
TokenCache.sentence = lambda self, index: (
    threading.Event().wait() if index == 100 else whole(self, index))
"""
    fields = (
        "max_steps=40, eval_every=100, data=__import__('dataclasses')"
        f".replace(tiny_config(Path({str(tmp_path)!r})).data, timeout=5.0)"
    )
    status, _, err = end(start(tmp_path, fields, before=hanging))
    assert status == 75, err
    assert "error: no batch came for 5 s (data.timeout): the disk of data.cache_dir may hang" in err
    assert "Traceback" not in err


def test_batches_within_their_time_are_the_same(finished):
    source = open_source(finished.data.source)
    tokenizer = saved_model.load(finished.workdir).tokenizer
    cache = tokenize(source, tokenizer, 16, finished.data.cache_dir, progress=False)
    batches = PackedBatches(cache, finished.data, seed=0)
    plain, timed = batches.iterate(3, 6), batches.iterate(3, 6, timeout=60)
    for (step, one), (other_step, other) in zip(plain, timed, strict=True):
        assert step == other_step
        jax.tree.map(np.testing.assert_array_equal, one, other)
    with pytest.raises(IndexError, match="steps 6 to 3"):
        next(batches.iterate(6, 3, timeout=60))


def test_full_disk_while_saving_leaves_the_earlier_steps(small_disk, tmp_path):
    config = tiny_config(tmp_path, workdir=str(small_disk / "run"), eval_every=100)
    with pytest.raises(UserError, match="cannot be written|could not be written"):
        train(config, devices=ONE_DEVICE)
    whole = steps_of(config.workdir)
    assert whole and whole[-1] < 10
    for step in whole:
        saved_params(config.workdir, step)


def test_full_disk_while_tokenising_is_reported_and_leaves_nothing_half(small_disk, tmp_path):
    config = tiny_config(tmp_path)
    text = tmp_path / "long.txt"
    text.write_text("".join(f"The cat number {number} sees me.\n" for number in range(40_000)))
    data = dataclasses.replace(
        config.data, source=str(text), cache_dir=str(small_disk / "cache"), dev=None
    )
    with pytest.raises(UserError, match="cache/.* cannot be written: No space left"):
        train(dataclasses.replace(config, data=data), devices=ONE_DEVICE)
    subprocess.run(["mount", "-o", "remount,size=64m", small_disk], check=True)
    train(dataclasses.replace(config, data=data, max_steps=1), devices=ONE_DEVICE)


def test_full_disk_under_the_metrics_is_one_sentence(tmp_path):
    config = tiny_config(tmp_path)
    Path(config.workdir).mkdir(parents=True)
    (Path(config.workdir) / "metrics.jsonl").symlink_to("/dev/full")
    with pytest.raises(UserError, match=r"metrics\.jsonl cannot be written: No space left"):
        train(config, devices=ONE_DEVICE)


def test_a_config_that_does_not_fit_is_not_kept(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished.workdir, workdir)
    config = dataclasses.replace(finished, workdir=str(workdir), max_steps=11)
    towers = dataclasses.replace(config.model, towers=("scratch",) * 3)
    with pytest.raises(UserError, match="does not fit this configuration"):
        train(dataclasses.replace(config, model=towers, force=True), devices=ONE_DEVICE)
    train(config, devices=ONE_DEVICE)


def test_a_run_whose_checkpoints_are_all_damaged_is_not_begun_anew_in_silence(finished, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished.workdir, workdir)
    config = dataclasses.replace(finished, workdir=str(workdir))
    for file in (workdir / CHECKPOINTS).glob("*/manifest.json"):
        file.write_text("{")
    with pytest.raises(UserError, match="all were damaged and are now in corrupt/"):
        train(config, devices=ONE_DEVICE)
    with pytest.raises(UserError, match="all checkpoints of the run in .* are damaged.*--force"):
        train(config, devices=ONE_DEVICE)
    train(dataclasses.replace(config, force=True), devices=ONE_DEVICE)
    assert largest_difference(saved_params(workdir), saved_params(finished.workdir)) == 0


def test_sigterm_while_the_last_step_is_evaluated_lets_nothing_follow(tmp_path, monkeypatch):
    config = tiny_config(tmp_path, max_steps=2, eval_every=2)
    evaluate = loop.Loop.evaluate

    def interrupted(self, state, step):
        if step == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(self, state, step)

    monkeypatch.setattr(loop.Loop, "evaluate", interrupted)
    with pytest.raises(Stopped):
        train(config, devices=ONE_DEVICE)
    assert steps_of(config.workdir) == [0, 2]
    train(config, devices=ONE_DEVICE)


def test_ctrl_c_saves_and_a_second_one_ends_at_once(tmp_path, monkeypatch, capsys):
    """The first is while step 2 is made, and no launcher may start the run again."""
    config = tiny_config(tmp_path, max_steps=6, eval_every=6, save_every=6)
    place = loop.sharding.place_batch
    calls = []

    def interrupted(mesh, batch):
        calls.append(batch)
        for _ in range(presses if len(calls) == 2 else 0):
            os.kill(os.getpid(), signal.SIGINT)
        return place(mesh, batch)

    monkeypatch.setattr(loop.sharding, "place_batch", interrupted)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    presses = 1
    with pytest.raises(Interrupted) as stop:
        train(config, devices=ONE_DEVICE)
    assert stop.value.status == 130 and steps_of(config.workdir) == [0, 2]
    assert "step 2 is saved" in capsys.readouterr().out
    presses = 2
    calls.clear()
    with pytest.raises(KeyboardInterrupt):
        train(config, devices=ONE_DEVICE)
    assert steps_of(config.workdir) == [0, 2]
    train(config, devices=ONE_DEVICE)
    assert steps_of(config.workdir)[-1] == 6
    assert signal.signal(signal.SIGINT, before) is signal.default_int_handler


def test_a_failed_start_leaves_no_workdir_and_takes_none(tmp_path):
    config = tiny_config(tmp_path)
    model = dataclasses.replace(config.model, towers=(str(tmp_path / "none"),) * 2)
    workdir = Path(config.workdir)
    for there in (False, True):
        with pytest.raises(UserError, match="none does not exist"):
            train(dataclasses.replace(config, model=model), devices=ONE_DEVICE)
        assert workdir.exists() == there
        workdir.mkdir(exist_ok=True)


def test_resumed_after_every_kind_of_stop_it_is_the_same_run(finished, tmp_path):
    """Stopped after steps 3 and 7, and a not finished save in the way."""
    config = tiny_config(tmp_path, eval_every=10)
    for stop in (3, 7):
        train(dataclasses.replace(config, max_steps=stop), devices=ONE_DEVICE)
        half = Path(config.workdir) / CHECKPOINTS / f"{stop + 1}.orbax-checkpoint-tmp"
        half.mkdir()
        (half / "manifest.json").write_text("{")
    train(config, devices=ONE_DEVICE)
    assert largest_difference(saved_params(config.workdir), saved_params(finished.workdir)) == 0
