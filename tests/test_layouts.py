"""Every layout of eight devices trains the same, and moves between them what it should."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.scaling import collectives
from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.batch import Batch
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.data.packing import fill, pack
from jtcse_jax.models.towers import Bank
from jtcse_jax.runtime import sharding
from jtcse_jax.training.train_step import init_state, make_train_step

SHAPE = Architecture(
    vocab_size=60, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_positions=40
)
pytestmark = pytest.mark.usefixtures("quick_compilation")

CROSSED = 2  # of the two layers
BANK = Bank(SHAPE, 2, dropout=0.1, attention_dropout=0.1, cross=Cross(num_layers=CROSSED))
JTCSE = ObjectiveConfig(name="jtcse")
KEY = jax.random.key(5)
RATE = 0.01
LENGTH, SLOTS, ROWS = 80, 4, 16
# tower_devices, fsdp_devices; of eight
LAYOUTS = [(1, 1), (1, 2), (1, 4), (1, 8), (2, 1), (2, 2), (2, 4)]


def make_batch(micro_batches: int = 0) -> Batch:
    """Sixteen sentences, both views of each in one of sixteen rows; or in micro-batches."""
    random = np.random.default_rng(1)
    sentences = [random.integers(5, 60, random.integers(3, 40)) for _ in range(16)]
    if not micro_batches:
        return _packed(sentences)
    each = len(sentences) // micro_batches
    parts = [sentences[start : start + each] for start in range(0, len(sentences), each)]
    return jax.tree.map(lambda *arrays: np.stack(arrays), *map(_packed, parts))


def _packed(sentences: list[np.ndarray]) -> Batch:
    views = [sentence for sentence in sentences for _ in range(2)]
    lengths = np.array([len(view) for view in views])
    packing = pack(lengths, LENGTH, SLOTS)
    rows = fill(packing, lambda view: views[view], lengths, ROWS, LENGTH, SLOTS, pad_id=0)
    return Batch(*rows, order=packing.order, mask=np.ones(len(views), bool))


def make_state():
    random = np.random.default_rng(0)

    def draw(path, leaf):
        centre = 1 if path[-1].key == "scale" else 0
        return jnp.asarray(random.normal(centre, 0.2, leaf.shape), jnp.float32)

    params = {"towers": jax.tree.map_with_path(draw, BANK.abstract())}
    return init_state(params, optax.sgd(RATE, momentum=0.9))


def step_on(tower_devices: int, fsdp_devices: int, batch: Batch, devices: int = 8):
    """The compiled step's text, the state after it and its metrics."""
    mesh = sharding.make_mesh(tower_devices, fsdp_devices, devices=jax.devices()[:devices])
    bank = dataclasses.replace(BANK, mesh=mesh)
    state = make_state()
    shardings = sharding.state_shardings(mesh, state)
    step = make_train_step(bank, JTCSE, optax.sgd(RATE, momentum=0.9), shardings)
    state, batch = sharding.place(state, shardings), sharding.place_batch(mesh, batch)
    assert len(batch.tokens.sharding.device_set) == mesh.size
    compiled = step.lower(state, batch, KEY).compile()
    new, metrics = compiled(state, batch, KEY, step.frozen)
    for leaf, where in zip(jax.tree.leaves(new), jax.tree.leaves(shardings), strict=True):
        assert leaf.sharding.is_equivalent_to(where, leaf.ndim)
    return compiled.as_text(), jax.device_get(new), jax.device_get(metrics)


def assert_same(found, expected):
    _, state, metrics = found
    _, expected_state, expected_metrics = expected
    for name, value in expected_metrics.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-5), name
    # The momentum is the gradient.
    for one, two in (
        (state.params, expected_state.params),
        (state.opt_state, expected_state.opt_state),
    ):
        largest = max(np.abs(leaf).max() for leaf in jax.tree.leaves(two))
        close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4 * largest)
        jax.tree.map(close, one, two)


@pytest.fixture(scope="module")
def on_one_device():
    return step_on(1, 1, make_batch(), devices=1)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_every_layout_trains_as_one_device(layout, on_one_device):
    found = step_on(*layout, make_batch())
    assert_same(found, on_one_device)
    assert_moves(found[0], *layout)


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
