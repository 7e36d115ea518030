"""One small batch and its state, to be compared between layouts of devices."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.batch import Batch
from jtcse_jax.data.packing import fill, pack
from jtcse_jax.models.towers import Bank
from jtcse_jax.training.train_step import init_state

SHAPE = Architecture(
    vocab_size=60, hidden_size=16, num_layers=2, num_heads=2, intermediate_size=32, max_positions=40
)
CROSSED = 2  # of the two layers
BANK = Bank(SHAPE, 2, dropout=0.1, attention_dropout=0.1, cross=Cross(num_layers=CROSSED))
KEY = jax.random.key(5)
RATE = 0.01
LENGTH, SLOTS, ROWS = 80, 4, 16


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
    rows = fill(packing, lambda view: views[view], ROWS, pad_id=0)
    return Batch(*rows, order=packing.order, mask=np.ones(len(views) // 2, bool))


def make_state():
    random = np.random.default_rng(0)

    def draw(path, leaf):
        centre = 1 if path[-1].key == "scale" else 0
        return jnp.asarray(random.normal(centre, 0.2, leaf.shape), jnp.float32)

    params = {"towers": jax.tree.map_with_path(draw, BANK.abstract())}
    return init_state(params, optax.sgd(RATE, momentum=0.9))


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
