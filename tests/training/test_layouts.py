"""Every layout of eight devices trains the same, and moves between them what it should."""

import dataclasses

import jax
import optax
import pytest
from layout_cases import (
    BANK,
    CROSSED,
    KEY,
    LENGTH,
    RATE,
    ROWS,
    SHAPE,
    assert_same,
    make_batch,
    make_state,
)

from benchmarks.scaling import collectives
from jtcse_jax.batch import Batch
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.models.layer_stacks import stack_layers, unstack_layers
from jtcse_jax.runtime import sharding
from jtcse_jax.training.train_step import make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

JTCSE = ObjectiveConfig(name="jtcse")
# tower_devices, fsdp_devices; of eight
LAYOUTS = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4)]


def step_on(
    tower_devices: int, fsdp_devices: int, batch: Batch, devices: int = 8, stacked: bool = False
):
    """The compiled step's text, the state after it, with single layers, and its metrics."""
    mesh = sharding.make_mesh(tower_devices, fsdp_devices, devices=jax.devices()[:devices])
    bank = dataclasses.replace(BANK, mesh=mesh)
    state = stack_layers(make_state()) if stacked else make_state()
    shardings = sharding.state_shardings(mesh, state)
    step = make_train_step(bank, JTCSE, optax.sgd(RATE, momentum=0.9), shardings)
    state, batch = sharding.place(state, shardings), sharding.place_batch(mesh, batch)
    assert len(batch.tokens.sharding.device_set) == mesh.size
    compiled = step.lower(state, batch, KEY).compile()
    new, metrics = compiled(state, batch, KEY, step.frozen)
    for leaf, where in zip(jax.tree.leaves(new), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
    return compiled.as_text(), jax.device_get(unstack_layers(new)), jax.device_get(metrics)


@pytest.fixture(scope="module")
def on_one_device():
    return step_on(1, 1, make_batch(), devices=1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_trains_as_one_device(layout, on_one_device):
    found = step_on(*layout, make_batch())
    assert_same(found, on_one_device)
    assert_moves(found[0], *layout)


@pytest.mark.parametrize("layout", [(1, 8), (2, 2)], ids=str)
def test_stacked_layers_train_as_one_device(layout, on_one_device):
    assert_same(step_on(*layout, make_batch(), stacked=True), on_one_device)


def assert_moves(text: str, tower_devices: int, fsdp_devices: int) -> None:
    """Over towers the values that cross, over fsdp the parameters, over rows no hidden state."""
    moved = collectives(text)
    hidden = 4 * ROWS * LENGTH * SHAPE.hidden_size // (8 // tower_devices)
    large = [each.kind for each in moved if max(each.sizes) >= hidden and each.kind != "all-reduce"]
    # Of each crossed layer the values, once forward and once back.
    assert large == ["collective-permute"] * (2 * CROSSED if tower_devices == 2 else 0)
    # What is reduced is gradients and sentence vectors.
    leaves = {4 * leaf.size // tower_devices for leaf in jax.tree.leaves(BANK.abstract())}
    reduced = {size for each in moved if each.kind == "all-reduce" for size in each.sizes}
    assert all(size < hidden or size in leaves for size in reduced)
    gathered = [each for each in moved if each.source.endswith("sharding_constraint")]
    matrices = [leaf for leaf in jax.tree.leaves(BANK.abstract()) if leaf.ndim == 3]
    assert len(gathered) == (len(matrices) if fsdp_devices > 1 else 0)
