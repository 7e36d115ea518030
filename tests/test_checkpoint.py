"""Checkpoints: what is saved comes back bit for bit, or not at all."""

import json
import logging
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jtcse_jax import manifest
from jtcse_jax.checkpoint import Checkpoints
from jtcse_jax.errors import Hung, UserError


class Tower(NamedTuple):
    kernel: Any
    layers: list


def make_state(step: int, *, size: int = 16) -> dict:
    """A state whose every value tells its step: dictionaries, tuples, lists, optax's own nodes."""
    kernel = jnp.arange(size * 8, dtype=jnp.float32).reshape(size, 8) / 3 + step
    params = {"tower": Tower(kernel, [jnp.full((3,), step, jnp.bfloat16)]), "bias": kernel[0] * 7}
    optimizer = optax.adamw(optax.constant_schedule(1e-3))
    _, opt_state = optimizer.update(jax.tree.map(jnp.sin, params), optimizer.init(params), params)
    return {"params": params, "optimizer": opt_state}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def assert_same_bits(got, want) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def save_steps(directory, scores: dict[int, float | None], **options) -> list[int]:
    with Checkpoints(directory, **options) as checkpoints:
        for step, score in scores.items():
            metrics = None if score is None else {"dev_spearman": score, "loss": 1.0}
            checkpoints.save(step, make_state(step), metrics)
        return checkpoints.steps()


def largest_file(folder: Path) -> Path:
    return max((folder / "params").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("two")
    save_steps(directory, {100: 0.5, 200: 0.4})
    return directory


@pytest.fixture
def damaged(two_steps, tmp_path) -> Path:
    """A copy of a directory with steps 100 and 200, for a test to damage."""
    return Path(shutil.copytree(two_steps, tmp_path / "checkpoints"))


def test_restores_every_bit_and_node(tmp_path):
    state = make_state(3)
    with Checkpoints(tmp_path / "new" / "folder") as checkpoints:
        checkpoints.save(3, state, {"dev_spearman": 0.25})
        assert checkpoints.metrics(3) == {"dev_spearman": 0.25}
    with Checkpoints(tmp_path / "new" / "folder") as checkpoints:
        step, restored = checkpoints.restore(
            params=abstract(state["params"]), optimizer=abstract(state["optimizer"])
        )
        assert step == 3 and checkpoints.metrics(3) == {"dev_spearman": 0.25}
        assert_same_bits(restored, state)
        _, restored = checkpoints.restore(3, params=abstract(state["params"]))
        assert_same_bits(restored, {"params": state["params"]})


def test_optimizer_without_arrays(tmp_path):
    state = {"params": {"w": jnp.ones(3)}, "optimizer": optax.sgd(0.1).init({"w": jnp.ones(3)})}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, state)
        _, restored = checkpoints.restore(
            params=abstract(state["params"]), optimizer=abstract(state["optimizer"])
        )
    assert_same_bits(restored, state)


def test_donating_the_saved_arrays_does_not_change_the_checkpoint(tmp_path):
    params = {"w": jnp.arange(2_000_000, dtype=jnp.float32)}
    want = np.array(params["w"])
    overwrite = jax.jit(lambda p: jax.tree.map(lambda x: x * 0 - 1, p), donate_argnums=0)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(1, {"params": params})
        for _ in range(5):
            params = overwrite(params)
        jax.block_until_ready(params)
        _, restored = checkpoints.restore(params=abstract(params))
    np.testing.assert_array_equal(restored["params"]["w"], want)


@pytest.mark.parametrize(
    ("scores", "keep", "kept", "best"),
    [
        ({1: 0.9, 2: 0.8, 3: 0.7, 4: 0.6, 5: 0.5}, 2, [1, 4, 5], 1),
        ({1: 0.1, 2: 0.2, 3: 0.3, 4: 0.4}, 2, [3, 4], 4),
        ({1: 0.1, 2: 0.7, 3: None, 4: 0.3, 5: None, 6: None}, 2, [2, 5, 6], 2),
        ({1: None, 2: None, 3: None}, 1, [3], None),
        ({1: 0.5, 2: 0.5, 3: 0.1}, 1, [2, 3], 2),
        ({1: float("nan"), 2: 0.5, 3: 0.1, 4: 0.2}, 1, [2, 4], 2),
    ],
    ids=["falling", "rising", "between evaluations", "never evaluated", "tie", "nan"],
)
def test_keeps_the_newest_and_the_best(tmp_path, scores, keep, kept, best):
    assert save_steps(tmp_path, scores, keep=keep) == kept
    on_disk = sorted(int(p.name) for p in tmp_path.iterdir() if p.name.isdigit())
    assert on_disk == kept
    with Checkpoints(tmp_path, keep=keep) as checkpoints:
        assert checkpoints.best_step() == best and checkpoints.newest_step() == kept[-1]


def test_best_outlives_a_restart(tmp_path):
    save_steps(tmp_path, {1: 0.9, 2: 0.1, 3: None})
    assert save_steps(tmp_path, {4: 0.2, 5: None, 6: None}) == [1, 5, 6]
    assert save_steps(tmp_path, {7: 0.95, 8: None, 9: None}) == [7, 8, 9]


def test_no_best_metric_keeps_the_newest_only(tmp_path):
    assert save_steps(tmp_path, {1: 0.9, 2: 0.8, 3: 0.7}, best_metric=None) == [2, 3]
    with Checkpoints(tmp_path, best_metric=None) as checkpoints:
        assert checkpoints.best_step() is None


def test_a_step_before_the_newest_is_saved_and_an_existing_one_refused(tmp_path):
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        for step in (10, 20, 15):
            checkpoints.save(step, make_state(step))
        assert checkpoints.steps() == [10, 15, 20]
        with pytest.raises(UserError, match="step 20 is already in"):
            checkpoints.save(20, make_state(20))


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


def test_restores_onto_another_number_of_devices(tmp_path):
    def on_devices(count):
        mesh = jax.make_mesh((count,), ("data",), (AxisType.Auto,), devices=jax.devices()[:count])

        def place(leaf):
            split = PartitionSpec("data") if leaf.shape[:1] == (16,) else PartitionSpec()
            return NamedSharding(mesh, split)

        return place

    params = make_state(1)["params"]
    with Checkpoints(tmp_path) as checkpoints:
        on_eight = jax.tree.map(lambda x: jax.device_put(x, on_devices(8)(x)), params)
        checkpoints.save(1, {"params": on_eight})
        for count in (8, 2, 1, 4):
            place = on_devices(count)
            wanted = jax.tree.map(
                lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place(x)),  # noqa: B023
                params,
            )
            _, restored = checkpoints.restore(params=wanted)
            assert_same_bits(restored["params"], params)
            kernel = restored["params"]["tower"].kernel
            assert kernel.sharding == place(kernel)
            assert {s.data.shape for s in kernel.addressable_shards} == {(16 // count, 8)}


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
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from test_checkpoint import Checkpoints, make_state, manifest
written = manifest.write
def killed_while_writing(folder, contents):
    written(folder, contents)
    if contents["step"] == int(sys.argv[3]):
        (folder / manifest.NAME).unlink()
        os.kill(os.getpid(), 9)
manifest.write = killed_while_writing
with Checkpoints(sys.argv[2]) as checkpoints:
    for step in range(1, 10000):
        checkpoints.save(step, make_state(step), {"dev_spearman": -step})
        print(step, flush=True)
"""


def start_saving(directory: Path, kill_in_manifest_of: int) -> subprocess.Popen:
    root = Path(__file__).resolve().parents[1]
    return subprocess.Popen(
        [sys.executable, "-c", SAVES_UNTIL_KILLED, __file__, directory, str(kill_in_manifest_of)],
        cwd=root,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(root)},
    )


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
    assert process.wait(timeout=120) == -signal.SIGKILL
    assert list(tmp_path.glob("3*tmp*"))
    assert assert_resumes_after_kill(tmp_path, started=3) == 2


@pytest.mark.parametrize("delay", [0.0, 0.02])
def test_killed_at_any_moment(tmp_path, delay):
    process = start_saving(tmp_path, kill_in_manifest_of=-1)
    for line in process.stdout:
        if int(line) == 4:
            break
    time.sleep(delay)
    process.kill()
    rest = process.stdout.read().split()
    process.wait(timeout=60)
    # One more may have been started without having been printed.
    assert_resumes_after_kill(tmp_path, started=int(rest[-1] if rest else 4) + 1)


TWO_PROCESSES = """
import os, sys
import jax
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[3], 2, int(sys.argv[4]))
sys.path.insert(0, os.path.dirname(sys.argv[1]))
from test_checkpoint import *
mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("data"))
whole = np.arange(64, dtype=np.float32)
def array(step):
    return jax.make_array_from_callback((64,), split, lambda part: whole[part] + step)
wanted = {"w": jax.ShapeDtypeStruct((64,), np.float32, sharding=split)}
with Checkpoints(sys.argv[2], keep=2) as checkpoints:
    for step in range(1, 6):
        checkpoints.save(step, {"params": {"w": array(step)}}, {"dev_spearman": 1.0 / step})
    assert checkpoints.steps() == [1, 4, 5], checkpoints.steps()
    if jax.process_index() == 0:
        flip_bit(largest_file(checkpoints._directory / "5"))
    try:
        checkpoints.restore(5, params=wanted)
        raise SystemExit("a damaged step was restored")
    except UserError as error:
        print(error)
    step, restored = checkpoints.restore(params=wanted)
    assert step == 4 and checkpoints.steps() == [1, 4], (step, checkpoints.steps())
    for shard in restored["params"]["w"].addressable_shards:
        np.testing.assert_array_equal(shard.data, whole[shard.index] + 4)
"""


@pytest.mark.slow
def test_two_processes_save_verify_and_restore_as_one(tmp_path):
    root = Path(__file__).resolve().parents[1]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", TWO_PROCESSES, __file__, tmp_path, address, str(index)],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            cwd=root,
            env={
                **os.environ,
                "PYTHONPATH": str(root),
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
            },
        )
        for index in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=120)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], "\n".join(outputs)
    assert (tmp_path / "corrupt" / "5").is_dir()
    with Checkpoints(tmp_path) as checkpoints:
        _, restored = checkpoints.restore(
            params={"w": jax.ShapeDtypeStruct((64,), jnp.float32)},
        )
    np.testing.assert_array_equal(restored["params"]["w"], np.arange(64) + 4)


def test_manifest_names_every_file(two_steps):
    folder = two_steps / "200"
    contents = json.loads((folder / "manifest.json").read_text())
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    outside = {"manifest.json", "_CHECKPOINT_METADATA", "commit_success.txt"}
    assert set(contents["files"]) == files - outside
    assert contents["step"] == 200 and contents["metrics"]["dev_spearman"] == 0.4
