"""One step against the gradient of the objective, taken directly."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from tiny_models import SHAPE

from jtcse_jax.batch import Batch
from jtcse_jax.config import ObjectiveConfig, OptimizerConfig
from jtcse_jax.data.packing import fill, pack
from jtcse_jax.models.teacher import Teacher
from jtcse_jax.models.towers import Bank
from jtcse_jax.training import objectives
from jtcse_jax.training.optimizer import make_optimizer
from jtcse_jax.training.train_step import (
    TrainState,
    as_checkpoint,
    from_checkpoint,
    init_state,
    make_train_step,
)

BANK = Bank(SHAPE, 2, dropout=0.1, attention_dropout=0.1)
TNCSE = ObjectiveConfig(name="tncse")  # whole runs of jtcse are in test_train.py
KEY = jax.random.key(5)
RATE = 0.01
SGD = optax.sgd(RATE)


def make_params(seed: int = 0) -> dict:
    random = np.random.default_rng(seed)

    def draw(path, leaf):
        centre = 1 if path[-1].key == "scale" else 0
        return jnp.asarray(random.normal(centre, 0.2, leaf.shape), jnp.float32)

    return {"towers": jax.tree.map_with_path(draw, BANK.abstract())}


def make_batch() -> Batch:
    """Four sentences, both views of each in one of four rows."""
    random = np.random.default_rng(1)
    sentences = [random.integers(5, 60, length) for length in (3, 7, 5, 4)]
    views = [sentence for sentence in sentences for _ in range(2)]
    lengths = np.array([len(view) for view in views])
    packing = pack(lengths, 16, 4)
    arrays = fill(packing, lambda view: views[view], 4, pad_id=0)
    return Batch(*arrays, order=packing.order, mask=np.ones(4, bool))


def copied(state: TrainState) -> TrainState:
    """A state to donate: what a step is given is gone."""
    return jax.tree.map(jnp.array, state)


def assert_same(one, two):
    jax.tree.map(np.testing.assert_array_equal, one, two)


@pytest.fixture(scope="module")
def state():
    """A state at step 3, with gradient descent."""
    return init_state(make_params(), optax.sgd(RATE))._replace(step=jnp.int32(3))


@pytest.fixture(scope="module")
def train_step():
    return make_train_step(BANK, TNCSE, optax.sgd(RATE))


def test_step_is_that_of_the_objective_and_its_gradient(state, train_step):
    def objective(params):
        key = jax.random.fold_in(KEY, 3)
        return objectives.OBJECTIVES["tncse"](BANK, params, make_batch(), key, TNCSE)

    (loss, terms), grads = jax.jit(jax.value_and_grad(objective, has_aux=True))(state.params)
    new, metrics = train_step(copied(state), make_batch(), KEY)
    norm = np.sqrt(sum(float((grad**2).sum()) for grad in jax.tree.leaves(grads)))
    assert norm > 0.1
    assert float(metrics["loss"]) == pytest.approx(float(loss), rel=1e-5)
    assert float(metrics["grad_norm"]) == pytest.approx(norm, rel=1e-4)
    for name, value in terms.items():
        assert float(metrics[name]) == pytest.approx(float(value), rel=1e-4, abs=1e-6), name
    assert metrics.keys() == {"loss", "grad_norm", "finite", "tokens", "flops", *terms}
    assert float(metrics["tokens"]) == 2 * (3 + 7 + 5 + 4)
    assert bool(metrics["finite"]) and int(new.step) == 4
    expected = jax.tree.map(lambda leaf, grad: leaf - RATE * grad, state.params, grads)
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, atol=1e-5), new.params, expected
    )


def test_randomness_is_a_function_of_key_and_step(state, train_step):
    def loss(step, key):
        _, metrics = train_step(copied(state)._replace(step=jnp.int32(step)), make_batch(), key)
        return float(metrics["loss"])

    assert loss(3, KEY) == loss(3, KEY)
    others = [loss(4, KEY), loss(5, KEY), loss(3, jax.random.key(6))]
    assert len({loss(3, KEY), *others}) == 4


def test_loss_that_is_not_finite_changes_nothing_but_the_step(state, train_step):
    spoilt = jax.tree.map(jnp.array, state.params)
    norm = spoilt["towers"]["embeddings"]["norm"]
    norm["bias"] = norm["bias"].at[1, 0].set(jnp.nan)
    before = state._replace(params=spoilt)
    after, metrics = train_step(copied(before), make_batch(), KEY)
    assert not bool(metrics["finite"]) and not np.isfinite(metrics["loss"])
    assert_same(after, before._replace(step=jnp.int32(4)))


def test_checkpoint_of_a_state_is_undone():
    optimizer = make_optimizer(OptimizerConfig(), 10)
    params = make_params() | {"head": {"kernel": jnp.ones((2, 16, 16)), "bias": jnp.ones((2, 16))}}
    state = init_state(params, optimizer)._replace(step=jnp.int32(7))
    saved = as_checkpoint(state)
    assert saved.keys() == {"params", "optimizer"}
    assert_same(saved["params"], params["towers"])  # the towers alone, for inference
    back = from_checkpoint(saved)
    assert jax.tree.structure(back) == jax.tree.structure(state)
    assert_same(back, state)


def test_only_equal_optimizers_share_a_step():
    """The number of steps matters only if the learning rate depends on it."""

    def jitted(steps: int = 10, **fields):
        return make_train_step(BANK, TNCSE, make_optimizer(OptimizerConfig(**fields), steps)).jitted

    assert jitted() is jitted() is jitted(steps=20)
    assert jitted(learning_rate=1.0) is not jitted()
    linear = [jitted(steps, schedule="linear") for steps in (10, 20, 10)]
    assert linear[0] is linear[2] is not linear[1]


def test_steps_with_teachers_of_one_shape_keep_their_own_parameters():
    one, other = ((make_params(seed)["towers"],) for seed in (1, 2))
    steps = [
        make_train_step(BANK, TNCSE, SGD, teacher=Teacher((BANK,), (1.0,), params))
        for params in (one, other)
    ]
    assert steps[0].jitted is steps[1].jitted
    assert steps[0].frozen is one and steps[1].frozen is other
