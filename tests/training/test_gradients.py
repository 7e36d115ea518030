"""Gradients cached over micro-batches, and losses taken in tiles, against the whole at once."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from layout_cases import BANK, KEY, RATE, assert_same, make_batch, make_state
from objective_cases import VIEWS, make_bank
from objective_cases import make_batch as make_small_batch

from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.models.teacher import Teacher
from jtcse_jax.runtime import sharding
from jtcse_jax.training import losses, objectives
from jtcse_jax.training.gradients import loss_and_gradient
from jtcse_jax.training.objectives import OBJECTIVES
from jtcse_jax.training.train_step import init_state, make_train_step

pytestmark = pytest.mark.usefixtures("quick_compilation")

CONFIGS = {
    "jtcse": ObjectiveConfig(name="jtcse"),
    "simcse": ObjectiveConfig(name="simcse", mlp_head=True),
    "mlm": ObjectiveConfig(name="mlm", mask_token_id=4),
}


def at_once(bank, params, batch, key, config):
    """The loss of all micro-batches, differentiated through every forward pass together."""
    objective = OBJECTIVES[config.name]

    def loss_of(params):
        outputs = []
        for number in range(len(batch.tokens)):
            one = jax.tree.map(lambda leaf: leaf[number], batch)  # noqa: B023
            number_key = jax.random.fold_in(key, number)
            outputs.append(objective.forward(bank, params, one, number_key, config))
        joined = jax.tree.map(lambda *leaves: jnp.concatenate(leaves, axis=1), *outputs)
        whole = batch._replace(mask=batch.mask.reshape(-1))
        return objective.loss(bank, joined, whole, key, config)

    return jax.value_and_grad(loss_of, has_aux=True)(params)


@pytest.mark.parametrize(
    ("name", "views"), [("jtcse", 2), ("jtcse", 3), ("simcse", 2), ("simcse", 3), ("mlm", 2)]
)
def test_cached_gradient_is_that_of_the_whole_batch_with_its_dropout(name, views):
    """Also with hard negatives, which are the third view."""
    config, bank = CONFIGS[name], make_bank(dropout=0.1, attention_dropout=0.1)
    partial = [True] * (6 // views - 1) + [False]
    batch = jax.tree.map(
        lambda *arrays: np.stack(arrays),
        make_small_batch(per_sentence=views),
        make_small_batch(VIEWS[::-1], mask=partial, per_sentence=views),
    )
    params = objectives.init_params(bank, bank.init(0), jax.random.key(1), config)
    arguments = params, batch, KEY
    found = jax.jit(lambda *given: loss_and_gradient(bank, *given, config))(*arguments)
    (loss, terms), gradient = jax.jit(lambda *given: at_once(bank, *given, config))(*arguments)
    largest = max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))
    assert largest > 0.01
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-5 * largest),
        found,
        (loss, terms, gradient),
    )


@pytest.mark.slow
def test_step_in_micro_batches_is_the_same_on_many_devices():
    """With a teacher, whose embeddings are made in micro-batches too."""
    config = ObjectiveConfig(name="distill", teacher="somewhere")
    batch = make_batch(micro_batches=2)
    optimizer = optax.sgd(RATE, momentum=0.9)
    ended = []
    for tower_devices, fsdp_devices, devices in ((1, 1, 1), (2, 2, 8)):
        mesh = sharding.make_mesh(tower_devices, fsdp_devices, devices=jax.devices()[:devices])
        student = dataclasses.replace(BANK, mesh=mesh)
        teacher_bank = dataclasses.replace(BANK, num_towers=1)
        frozen = jax.device_put(teacher_bank.init(3), sharding.replicated(mesh))
        teacher = Teacher((teacher_bank,), (1.0,), (frozen,))
        state = init_state(make_state().params, optimizer)
        shardings = sharding.state_shardings(mesh, state)
        step = make_train_step(student, config, optimizer, shardings, teacher)
        placed = sharding.place_batch(mesh, batch._replace(teacher=(batch,)))
        new, metrics = step(sharding.place(state, shardings), placed, KEY)
        ended.append((None, jax.device_get(new), jax.device_get(metrics)))
    assert ended[0][2]["teacher"] > 0.01
    assert_same(ended[1], ended[0])


LOSSES = {
    "info_nce": lambda x, y, mask: losses.info_nce(x, y, temperature=0.1, mask=mask),
    "other_view": lambda x, y, mask: losses.info_nce_other_view(x, y, temperature=0.1, mask=mask),
    "listwise": lambda x, y, mask: losses.listwise(
        x, y, temperature=0.1, teacher_temperature=0.2, mask=mask
    ),
    "uniformity": lambda x, y, mask: losses.uniformity(x + 0 * y, mask=mask),
}


def value_and_gradient(loss, x, y, mask):
    """Traced for each call, with the tiles that are set then."""
    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(x, y, mask)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", LOSSES)
def test_tiles_change_nothing(monkeypatch, name, masked):
    """Whatever their number, also where they do not divide the anchors."""
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 22, 5)).astype(np.float32)
    mask = jnp.arange(22) < 18 if masked else None
    whole = value_and_gradient(LOSSES[name], x, y, mask)
    for tile in (100, 40, 1):
        monkeypatch.setattr(losses, "_TILE", tile)
        in_tiles = value_and_gradient(LOSSES[name], x, y, mask)
        jax.tree.map(
            lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6),
            in_tiles,
            whole,
        )


@pytest.mark.parametrize("name", LOSSES)
def test_tiles_over_many_devices_change_nothing(monkeypatch, name):
    random = np.random.default_rng(0)
    x, y = random.normal(size=(2, 32, 5)).astype(np.float32)
    mask = np.arange(32) < 26
    whole = value_and_gradient(LOSSES[name], x, y, mask)
    monkeypatch.setattr(losses, "_TILE", 300)
    mesh = sharding.make_mesh()
    assert mesh.size == 8

    def split(x, y, mask):
        return LOSSES[name](*sharding.split_sentences(mesh, jnp.stack([x, y])), mask)

    in_tiles = value_and_gradient(split, x, y, mask)
    jax.tree.map(
        lambda one, two: np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-6),
        in_tiles,
        whole,
    )


def test_65536_sentences_fit():
    """Of 131,072 views the logits would take 69 GB; by the compiler's plan."""
    vectors = jax.ShapeDtypeStruct((2**17, 64), jnp.float32)
    compiled = jax.jit(jax.grad(lambda x: LOSSES["info_nce"](x, x, None))).lower(vectors).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 1.5e9


def test_large_batch_shares_its_anchors_over_devices(monkeypatch):
    """No device computes more than its share of the products, beside the gradient's own."""
    monkeypatch.setattr(losses, "_TILE", 2**12)

    def operations(devices: int) -> float:
        mesh = sharding.make_mesh(devices=jax.devices()[:devices])

        def loss(x):
            (x,) = sharding.split_sentences(mesh, x[None])
            return LOSSES["info_nce"](x, x, None)

        vectors = jax.ShapeDtypeStruct((256, 64), jnp.float32, sharding=sharding.replicated(mesh))
        compiled = jax.jit(jax.grad(loss)).lower(vectors).compile()
        return compiled.cost_analysis()["flops"]

    assert operations(8) < operations(1) / 6
