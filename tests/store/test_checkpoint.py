"""Checkpoints: what is saved comes back bit for bit, or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from checkpoints import abstract, assert_same_bits, make_state, save_steps
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from processes import end, free_port, start_python

from jtcse_jax.errors import UserError
from jtcse_jax.store.checkpoint import Checkpoints


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


TWO_PROCESSES = """
import sys
import jax
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from checkpoints import flip_bit, largest_file
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.errors import UserError
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(sys.argv[2], 2, int(sys.argv[3]))
mesh = jax.make_mesh((jax.device_count(),), ("data",), (AxisType.Auto,))
split = NamedSharding(mesh, PartitionSpec("data"))
whole = np.arange(64, dtype=np.float32)
def array(step):
    return jax.make_array_from_callback((64,), split, lambda part: whole[part] + step)
wanted = {"w": jax.ShapeDtypeStruct((64,), np.float32, sharding=split)}
with Checkpoints(sys.argv[1], keep=2) as checkpoints:
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
with Checkpoints(sys.argv[1], read_only=True) as reader:
    assert reader.best_step() == 1
    if jax.process_index() == 0:
        flip_bit(largest_file(reader._directory / "1"))
    assert reader.restore(params=wanted, prefer="best")[0] == 4
    assert reader.steps() == [1, 4]
"""


@pytest.mark.slow
def test_two_processes_save_verify_and_restore_as_one(tmp_path):
    address = f"127.0.0.1:{free_port()}"
    devices = {"XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    processes = [
        start_python("-c", TWO_PROCESSES, str(tmp_path), address, str(index), **devices)
        for index in range(2)
    ]
    ended = [end(process) for process in processes]
    assert [status for status, _, _ in ended] == [0, 0], ended
    assert (tmp_path / "corrupt" / "5").is_dir()
    with Checkpoints(tmp_path) as checkpoints:
        _, restored = checkpoints.restore(
            params={"w": jax.ShapeDtypeStruct((64,), jnp.float32)},
        )
    np.testing.assert_array_equal(restored["params"]["w"], np.arange(64) + 4)
