"""Stacked layers against single ones: the same bank, the same training."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from objective_cases import TINY, make_batch

from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.config import ObjectiveConfig, OptimizerConfig
from jtcse_jax.models.layer_stacks import has_stacks, stack_layers, unstack_layers
from jtcse_jax.models.towers import Bank
from jtcse_jax.training import train_step
from jtcse_jax.training.objectives import init_params
from jtcse_jax.training.optimizer import make_optimizer
from jtcse_jax.training.train_step import init_state, make_train_step

BERT = dataclasses.replace(TINY, num_layers=3)
MODERN = dataclasses.replace(BERT, family="modernbert")  # its first layer has one norm less
KEY = jax.random.key(4)


def bank_of(architecture: Architecture) -> Bank:
    cross = Cross("side", num_layers=1)
    return Bank(architecture, 2, dropout=0.1, attention_dropout=0.1, cross=cross)


def assert_close(one, two, tolerance):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=0, atol=tolerance), one, two)


def test_equal_layers_share_a_leaf():
    layers = {number: {"kernel": np.full((2, 3), number)} for number in range(4)}
    layers[3] = {"kernel": np.zeros((2, 5))}
    moments = (optax.EmptyState(), {"towers": {"layers": layers, "pooler": np.ones(2)}})
    stacked = stack_layers(moments)
    assert has_stacks(stacked) and not has_stacks(moments)
    stacks = stacked[1]["towers"]["layer_stacks"]
    assert {first: stack["kernel"].shape for first, stack in stacks.items()} == {
        0: (2, 3, 3),
        3: (2, 1, 5),
    }
    np.testing.assert_array_equal(stacks[0]["kernel"][0, :, 0], [0, 1, 2])


@pytest.mark.parametrize("architecture", [BERT, MODERN], ids=["bert", "modernbert"])
def test_unstacking_gives_the_same_bank(architecture):
    params = {"towers": bank_of(architecture).init(0), "head": {"bias": np.ones(3)}}
    back = unstack_layers(stack_layers(params))
    assert jax.tree.structure(back) == jax.tree.structure(params)
    assert_close(back, params, 0)


@pytest.mark.parametrize("name", ["jtcse", "mlm"])
def test_training_is_the_same_with_stacked_layers(name, monkeypatch):
    bank = bank_of(BERT)
    objective = ObjectiveConfig(name=name, mask_token_id=3)
    optimizer = make_optimizer(OptimizerConfig(learning_rate=1e-3, decay="kernels"), 4)
    params = init_params(bank, jax.tree.map(jnp.asarray, bank.init(0)), KEY, objective)
    ends = []
    for stacked in (False, True):
        monkeypatch.setattr(train_step, "stacks_layers", lambda mesh, stacked=stacked: stacked)
        state = init_state(jax.tree.map(jnp.array, params), optimizer)
        assert has_stacks(state) == stacked
        step = make_train_step(bank, objective, optimizer)
        for _ in range(3):
            state, metrics = step(state, make_batch(), KEY)
        ends.append((unstack_layers(state), metrics))
    (single, _), (stacked, _) = ends
    assert jax.tree.structure(single) == jax.tree.structure(stacked)
    assert_close(single.params, stacked.params, 1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), ends[0][1], ends[1][1])


def test_a_tpu_keeps_the_layout_of_the_state():
    params = bank_of(BERT).init(0)
    stacks = stack_layers(params)
    for change, tree in ((stack_layers, params), (unstack_layers, stacks)):
        traced = jax.jit(change).trace(tree)
        texts = [traced.lower(lowering_platforms=(name,)).as_text() for name in ("tpu", "cuda")]
        assert ["LayoutConstraint" in text for text in texts] == [True, False]
