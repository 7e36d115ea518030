"""The loss of a batch and its gradient: in one pass, or in micro-batches with the same result."""

from typing import Any

import jax
import jax.numpy as jnp
from jax import Array

from jtcse_jax.batch import Batch
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.models.towers import Bank, Params
from jtcse_jax.runtime import sharding
from jtcse_jax.training.objectives import OBJECTIVES, Terms

PyTree = Any


def loss_and_gradient(
    bank: Bank, params: Params, batch: Batch, key: Array, config: ObjectiveConfig
) -> tuple[Array, Terms, Params]:
    """The objective's loss and terms, and the gradient of the loss, in the structure of `params`.

    With micro-batches [M, ...] the gradient is cached (arXiv 2101.06983). First each micro-batch
    runs forward, and only its outputs are kept. Then the loss of all outputs gives the gradient of
    each output. Last, each micro-batch runs again to carry its part back to the parameters. The
    result is that of the whole batch at once; the price is a second forward pass. The dropout of a
    micro-batch depends on its number, so it is the same both times.
    """
    objective = OBJECTIVES[config.name]

    def forward(params: Params, rows: Batch, key: Array) -> PyTree:
        return objective.forward(bank, params, rows, key, config)

    def loss_of(outputs: PyTree) -> tuple[Array, Terms]:
        outputs = sharding.split_sentences(bank.mesh, outputs)
        whole = batch._replace(mask=batch.mask.reshape(-1))
        return objective.of_outputs(bank, outputs, whole, key, config)

    if not batch.has_micro_batches:
        (loss, terms), gradient = jax.value_and_grad(
            lambda params: loss_of(forward(params, batch, key)), has_aux=True
        )(params)
        return loss, terms, gradient

    rows = batch._replace(target=None)
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.arange(len(batch.tokens)))
    outputs = jax.lax.map(lambda one: forward(params, *one), (rows, keys))
    (loss, terms), wanted = jax.value_and_grad(loss_of, has_aux=True)(_joined(outputs))

    def add(total: Params, one: tuple[Batch, Array, PyTree]) -> tuple[Params, None]:
        rows, key, wanted = one
        _, back = jax.vjp(lambda params: forward(params, rows, key), params)
        return jax.tree.map(jnp.add, total, back(wanted)[0]), None

    nothing = jax.tree.map(jnp.zeros_like, params)
    gradient, _ = jax.lax.scan(add, nothing, (rows, keys, _parted(wanted, len(keys))))
    return loss, terms, gradient


def _joined(outputs: PyTree) -> PyTree:
    """Outputs [K, M * N, ...] of the whole batch from those of micro-batches [M, K, N, ...]."""

    def join(leaf: Array) -> Array:
        leaf = leaf.swapaxes(0, 1)
        return leaf.reshape(len(leaf), -1, *leaf.shape[3:])

    return jax.tree.map(join, outputs)


def _parted(outputs: PyTree, count: int) -> PyTree:
    """The inverse of `_joined`, for `count` micro-batches."""

    def part(leaf: Array) -> Array:
        return leaf.reshape(len(leaf), count, -1, *leaf.shape[2:]).swapaxes(0, 1)

    return jax.tree.map(part, outputs)
