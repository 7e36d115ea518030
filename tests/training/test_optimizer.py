"""AdamW against the update written out in numpy (Loshchilov and Hutter, arXiv 1711.05101)."""

import itertools
import math

import jax
import numpy as np
import optax
import pytest

from jtcse_jax.architecture import Architecture
from jtcse_jax.config import OptimizerConfig
from jtcse_jax.models.towers import Bank
from jtcse_jax.training.optimizer import (
    global_norm,
    make_optimizer,
    make_schedule,
    only_kernels,
)

NAMES = ("kernel", "bias", "scale", "embedding")


def tree(seed: int) -> dict:
    random = np.random.default_rng(seed)
    return {"layer": {name: random.normal(size=(2, 3)).astype(np.float32) for name in NAMES}}


def numpy_adamw(params, all_grads, config: OptimizerConfig, rates, decayed):
    """The parameters after len(all_grads) steps, in float64."""
    params = {name: value.astype(np.float64) for name, value in params["layer"].items()}
    first = {name: 0.0 for name in NAMES}
    second = {name: 0.0 for name in NAMES}
    for t, (grads, rate) in enumerate(zip(all_grads, rates, strict=True), start=1):
        grads = {name: value.astype(np.float64) for name, value in grads["layer"].items()}
        if config.max_grad_norm is not None:
            norm = math.sqrt(sum((value**2).sum() for value in grads.values()))
            scale = min(1.0, config.max_grad_norm / norm)
            grads = {name: scale * value for name, value in grads.items()}
        for name, grad in grads.items():
            first[name] = config.b1 * first[name] + (1 - config.b1) * grad
            second[name] = config.b2 * second[name] + (1 - config.b2) * grad**2
            mean = first[name] / (1 - config.b1**t)
            root = np.sqrt(second[name] / (1 - config.b2**t))
            decay = config.weight_decay if name in decayed else 0.0
            params[name] = params[name] - rate * (mean / (root + config.eps) + decay * params[name])
    return params


@pytest.mark.parametrize(
    ("fields", "decayed"),
    [
        ({"weight_decay": 0.3}, NAMES),
        ({"weight_decay": 0.3, "decay": "kernels"}, ("kernel", "embedding")),
        ({"weight_decay": 0.0, "b1": 0.5, "b2": 0.7, "eps": 0.1}, ()),
        ({"weight_decay": 0.3, "max_grad_norm": 0.5, "eps": 1e-2}, NAMES),
        ({"weight_decay": 0.3, "max_grad_norm": 1e6}, NAMES),
    ],
)
def test_three_steps_are_those_of_adamw(fields, decayed):
    config = OptimizerConfig(learning_rate=0.1, schedule="linear", **fields)
    optimizer = make_optimizer(config, total_steps=4)
    params, all_grads = tree(0), [tree(seed) for seed in (1, 2, 3)]
    expected = numpy_adamw(params, all_grads, config, (0.1, 0.075, 0.05), decayed)
    state = optimizer.init(params)
    for grads in all_grads:
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    for name in NAMES:
        np.testing.assert_allclose(params["layer"][name], expected[name], rtol=2e-5, atol=5e-6)


def test_global_norm_is_that_of_all_leaves_together():
    random = np.random.default_rng(0)
    shapes = [(2, 3), (2, 3), (3, 2), (6,), (), (2, 3)]
    leaves = [np.asarray(random.normal(size=shape), np.float32) for shape in shapes]
    expected = np.linalg.norm(np.concatenate([leaf.ravel() for leaf in leaves]))
    np.testing.assert_allclose(global_norm(leaves), expected, rtol=1e-6)
    assert np.isnan(global_norm([*leaves, np.full((2, 3), np.nan, np.float32)]))


def test_clipping_keeps_the_state_of_optax():
    """So that a checkpoint of a run that clips stays readable."""
    config = OptimizerConfig(max_grad_norm=1.0)
    theirs = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(optax.constant_schedule(1e-3))
    ).init(tree(0))
    ours = make_optimizer(config, total_steps=4).init(tree(0))
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)


@pytest.mark.parametrize(
    ("schedule", "warmup", "rates"),
    [
        ("constant", 0, {0: 2.0, 1: 2.0, 12: 2.0}),
        ("constant", 4, {0: 0.0, 1: 0.5, 3: 1.5, 4: 2.0, 12: 2.0}),
        ("linear", 0, {0: 2.0, 6: 1.0, 9: 0.5, 12: 0.0}),
        ("linear", 4, {0: 0.0, 2: 1.0, 4: 2.0, 8: 1.0, 12: 0.0, 15: 0.0}),
        ("cosine", 0, {0: 2.0, 4: 1 + math.cos(math.pi / 3), 6: 1.0, 12: 0.0}),
        ("cosine", 4, {2: 1.0, 4: 2.0, 8: 1.0, 12: 0.0}),
        ("linear", 12, {6: 1.0, 12: 2.0, 13: 0.0}),
    ],
)
def test_rate_of_a_run_of_twelve_steps(schedule, warmup, rates):
    config = OptimizerConfig(learning_rate=2.0, schedule=schedule, warmup_steps=warmup)
    rate = make_schedule(config, 12)
    assert {step: pytest.approx(float(rate(step)), abs=1e-6) for step in rates} == rates


def test_biases_and_layer_norms_are_told_from_kernels():
    shape = Architecture(
        vocab_size=9, hidden_size=4, num_layers=2, num_heads=2, intermediate_size=4, max_positions=8
    )
    head = {"kernel": np.zeros((2, 4, 4)), "bias": np.zeros((2, 4))}
    marks = only_kernels({"towers": Bank(shape, 2).abstract(), "head": head})
    names = {jax.tree_util.keystr(path): mark for path, mark in jax.tree.leaves_with_path(marks)}
    assert len(names) == 5 + 16 * 2 + 2 + 2  # embeddings, layers, pooler, head
    for name, mark in names.items():
        assert mark == (not ("bias" in name or "scale" in name)), name
    assert sum(names.values()) == 3 + 6 * 2 + 1 + 1


def test_a_finite_gradient_gives_a_finite_update_whatever_the_config_lets_through():
    """The train step relies on it: it looks at the gradient and not at the new state."""
    sizes = np.concatenate([[0], np.logspace(-40, 18, 200)]).astype(np.float32)
    extremes = {"learning_rate": (1e-20, 1e30), "eps": (1e-20, 1e30), "b1": (0, 0.999999)}
    for rate, eps, b1 in itertools.product(*extremes.values()):
        config = OptimizerConfig(learning_rate=rate, eps=eps, b1=b1, b2=b1, schedule="constant")
        optimizer = make_optimizer(config, 10)
        params = {"kernel": np.ones_like(sizes)}
        state = optimizer.init(params)
        for gradient in (sizes, -sizes, 0 * sizes):
            updates, state = optimizer.update({"kernel": gradient}, state, params)
            leaves = jax.tree.leaves((updates, state))
            assert all(np.isfinite(leaf).all() for leaf in leaves), (rate, eps, b1)
