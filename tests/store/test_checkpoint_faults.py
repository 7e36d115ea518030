"""Checkpoints damaged, cut short by a kill, or not fitting: the newest good one, or a sentence."""

import json
import logging
import resource
import shutil
import signal
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
import pytest
from checkpoints import (
    Tower,
    abstract,
    assert_same_bits,
    flip_bit,
    largest_file,
    make_state,
    save_steps,
)
from processes import Python, start_python, wait_for

from jtcse_jax.errors import Hung, UserError
from jtcse_jax.store import manifest
from jtcse_jax.store.checkpoint import Checkpoints


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("two")
    save_steps(directory, {100: 0.5, 200: 0.4})
    return directory


@pytest.fixture
def damaged(two_steps, tmp_path) -> Path:
    """A copy of a directory with steps 100 and 200, for a test to damage."""
    return Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


def test_one_flipped_bit_in_any_file_is_found(damaged):
    """Two files hold orbax's own remarks only: a flipped bit there must not change what returns."""
    folder = damaged / "200"
    assert manifest.problem(folder) is None
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    assert len(names) > 10
    for name in names:
        original = (folder / name).read_bytes()
        flip_bit(folder / name)
        if name in ("_CHECKPOINT_METADATA", "commit_success.txt"):
            with Checkpoints(damaged) as checkpoints:
                step, restored = checkpoints.restore(params=abstract(make_state(200)["params"]))
            assert step == 200
            assert_same_bits(restored["params"], make_state(200)["params"])
        else:
            assert name in manifest.problem(folder)
        (folder / name).write_bytes(original)
    assert manifest.problem(folder) is None


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


DAMAGE = {
    "sha256": lambda folder: flip_bit(largest_file(folder)),
    "bytes": lambda folder: truncate(largest_file(folder)),
    "has 0 bytes": lambda folder: largest_file(folder).write_bytes(b""),
    "is missing": lambda folder: largest_file(folder).unlink(),
    "not in the manifest": lambda folder: (folder / "params" / "extra").write_text("x"),
    "manifest.json is missing": lambda folder: (folder / manifest.NAME).unlink(),
    "manifest.json is altered": lambda folder: truncate(folder / manifest.NAME),
}


@pytest.mark.parametrize("words", DAMAGE)
def test_damaged_step_is_set_aside_for_the_next_newest(damaged, caplog, words):
    DAMAGE[words](damaged / "200")
    params = abstract(make_state(100)["params"])
    with Checkpoints(damaged) as checkpoints:
        with pytest.raises(UserError, match=f"step 200 .* is damaged: .*{words}"):
            checkpoints.restore(200, params=params)
        assert (damaged / "200").exists()
        with caplog.at_level(logging.WARNING, logger="jtcse_jax"):
            step, restored = checkpoints.restore(params=params)
        assert step == 100 and checkpoints.steps() == [100]
        assert_same_bits(restored["params"], make_state(100)["params"])
        [line] = [r.getMessage() for r in caplog.records if r.name.startswith("jtcse_jax")]
        assert words in line and str(damaged / "200") in line and "moved to" in line
        assert (damaged / "corrupt" / "200").is_dir()
        checkpoints.save(200, make_state(200))
        assert checkpoints.restore(params=params)[0] == 200
        DAMAGE[words](damaged / "200")
        assert checkpoints.restore(params=params)[0] == 100
    assert len(list((damaged / "corrupt").iterdir())) == 2


def test_an_error_on_its_way_is_not_replaced_by_that_of_a_save(tmp_path, monkeypatch, caplog):
    failures = [OSError("the disk is full")]

    def fail_once(self):
        if failures:
            raise failures.pop()

    monkeypatch.setattr(ocp.CheckpointManager, "wait_until_finished", fail_once)
    with pytest.raises(ZeroDivisionError), Checkpoints(tmp_path):
        raise ZeroDivisionError
    assert "could not be written" in caplog.text and "the disk is full" in caplog.text


def test_a_hung_disk_is_not_waited_for(tmp_path, monkeypatch):
    closed = []
    monkeypatch.setattr(Checkpoints, "close", lambda self: closed.append(self))
    with pytest.raises(Hung), Checkpoints(tmp_path):
        raise Hung("no batch came")
    assert not closed


def test_no_good_step_left_and_no_step_at_all(damaged, tmp_path):
    params = abstract(make_state(1)["params"])
    for step in (100, 200):
        flip_bit(largest_file(damaged / str(step)))
    with Checkpoints(damaged) as checkpoints:
        with pytest.raises(UserError, match="no good checkpoint in"):
            checkpoints.restore(params=params)
    with Checkpoints(tmp_path / "empty") as checkpoints:
        with pytest.raises(UserError, match="no checkpoint in"):
            checkpoints.restore(params=params)
        with pytest.raises(UserError, match=r"no checkpoint of step 7 in .*, there are \[\]"):
            checkpoints.restore(7, params=params)
        assert checkpoints.newest_step() is None and checkpoints.best_step() is None


def test_read_only_changes_nothing(damaged, tmp_path):
    flip_bit(largest_file(damaged / "200"))
    (damaged / "300.orbax-checkpoint-tmp").mkdir()
    before = sorted(damaged.rglob("*"))
    with Checkpoints(damaged, read_only=True) as checkpoints:
        assert checkpoints.restore(params=abstract(make_state(100)["params"]))[0] == 100
        assert checkpoints.best_step() == 100
        with pytest.raises(ValueError, match="read_only"):
            checkpoints.save(300, make_state(300))
    assert sorted(damaged.rglob("*")) == before
    with Checkpoints(tmp_path / "absent", read_only=True) as checkpoints:
        assert checkpoints.steps() == []
    assert not (tmp_path / "absent").exists()


def test_every_misfitting_leaf_is_listed(two_steps):
    wanted = abstract(make_state(200)["params"])
    wanted["bias"] = jax.ShapeDtypeStruct((9,), jnp.float32)
    wanted["tower"] = Tower(wanted["tower"].kernel, [jax.ShapeDtypeStruct((3,), jnp.float32)])
    wanted["added"] = jax.ShapeDtypeStruct((2, 2), jnp.int32)
    with Checkpoints(two_steps) as checkpoints:
        with pytest.raises(UserError) as error:
            checkpoints.restore(params=wanted, optimizer={"count": wanted["added"]})
    text = str(error.value)
    assert "params bias: saved float32[8], wanted float32[9]" in text
    assert "params tower.layers.0: saved bfloat16[3], wanted float32[3]" in text
    assert "params added: saved nothing, wanted int32[2, 2]" in text
    assert "optimizer count: saved nothing, wanted int32[2, 2]" in text
    assert "optimizer 0.mu.bias: saved float32[8], wanted nothing" in text
    assert "kernel: saved float32[16, 8], wanted float32" not in text
    assert (two_steps / "200").exists()


def test_unusable_directory_is_one_sentence(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(UserError, match="cannot be used"):
            Checkpoints(path)
    with pytest.raises(UserError, match="is a URL"):
        Checkpoints("gs://bucket/run")
    with pytest.raises(UserError, match="at least 1, not 0"):
        Checkpoints(tmp_path, keep=0)


# Orbax leaves its event loop closed behind a failed write.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_full_disk_is_one_sentence_and_earlier_steps_stay(tmp_path):
    """A limit on file size makes every layer's write fail as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        checkpoints.save(1, make_state(1))
        checkpoints.wait()
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))
        try:
            with pytest.raises(UserError, match=r"step 2 could not be written .* \[1\]"):
                checkpoints.save(2, make_state(2, size=4000))
                checkpoints.wait()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        params = abstract(make_state(1)["params"])
        assert checkpoints.restore(params=params)[0] == 1
        checkpoints.save(3, make_state(3))
        step, restored = checkpoints.restore(params=params)
        assert step == 3 and checkpoints.steps() == [3]
        assert_same_bits(restored["params"], make_state(3)["params"])


SAVES_UNTIL_KILLED = """
import os, sys
from checkpoints import make_state
from jtcse_jax.store import manifest
from jtcse_jax.store.checkpoint import Checkpoints
written = manifest.write
def killed_while_writing(folder, contents):
    written(folder, contents)
    if contents["step"] == int(sys.argv[2]):
        (folder / manifest.NAME).unlink()
        os.kill(os.getpid(), 9)
manifest.write = killed_while_writing
with Checkpoints(sys.argv[1]) as checkpoints:
    for step in range(1, 10000):
        checkpoints.save(step, make_state(step), {"dev_spearman": -step})
        print(step, flush=True)
"""


def start_saving(directory: Path, kill_in_manifest_of: int) -> Python:
    return start_python("-c", SAVES_UNTIL_KILLED, str(directory), str(kill_in_manifest_of))


def assert_resumes_after_kill(directory: Path, *, started: int) -> int:
    # As if left by a kill at a step that is never reached again.
    (directory / "7777.orbax-checkpoint-tmp").mkdir()
    with Checkpoints(directory) as checkpoints:
        step, restored = checkpoints.restore(params=abstract(make_state(1)["params"]))
        assert started - 2 <= step <= started
        assert_same_bits(restored["params"], make_state(step)["params"])
        assert not (directory / "corrupt").exists()
        assert checkpoints.best_step() == 1
        checkpoints.save(step + 1, make_state(step + 1))
        assert checkpoints.restore(params=abstract(make_state(1)["params"]))[0] == step + 1
    assert not list(directory.glob("*tmp*"))
    return step


def test_killed_between_the_files_and_the_manifest(tmp_path):
    process = start_saving(tmp_path, kill_in_manifest_of=3)
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert list(tmp_path.glob("3*tmp*"))
    assert assert_resumes_after_kill(tmp_path, started=3) == 2


@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_killed_at_any_moment(tmp_path, delay):
    process = start_saving(tmp_path, kill_in_manifest_of=-1)
    wait_for(tmp_path, "4", process)
    time.sleep(delay)
    process.kill()
    process.join(60)
    printed = process.out.read_text().split()
    # One more may have been started without having been printed.
    assert_resumes_after_kill(tmp_path, started=int(printed[-1]) + 1)


def test_manifest_names_every_file(two_steps):
    folder = two_steps / "200"
    contents = json.loads((folder / "manifest.json").read_text())
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    outside = {"manifest.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
    assert set(contents["files"]) == files - outside
    assert contents["step"] == 200 and contents["metrics"]["dev_spearman"] == 0.4
