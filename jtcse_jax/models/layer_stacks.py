"""Equal layers of a bank as one stack: a leaf [K, L, ...] in place of L leaves [K, ...].

A GPU or TPU casts and updates a stack in one launch where it needs one for every layer, and the
host passes it 16 arrays and not 16 for every layer. Checkpoints and models have single layers.
"""

from itertools import groupby
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.layout import Layout, with_layout_constraint

from jtcse_jax.models.parts import on_tpu

PyTree = Any
LAYERS, STACKS = "layers", "layer_stacks"


def stack_layers(tree: PyTree) -> PyTree:
    """The tree with the layers of each bank in it stacked.

    Banks may be parameters, gradients or moments: dictionaries with "layers" by their number, from
    0. Consecutive layers of one structure and shape become a stack. It stands under "layer_stacks",
    by the number of its first layer.
    """
    return jax.tree.map(_stacked, tree, is_leaf=lambda part: _has(LAYERS, part))


def unstack_layers(tree: PyTree) -> PyTree:
    """The inverse of `stack_layers`; a tree without stacks is returned as it is."""
    return jax.tree.map(_unstacked, tree, is_leaf=lambda part: _has(STACKS, part))


def has_stacks(tree: PyTree) -> bool:
    """Whether `unstack_layers` would change the tree."""
    parts = jax.tree.leaves(tree, is_leaf=lambda part: _has(STACKS, part))
    return any(_has(STACKS, part) for part in parts)


def _has(name: str, part: PyTree) -> bool:
    return isinstance(part, dict) and name in part


def _stacked(bank: PyTree) -> PyTree:
    if not _has(LAYERS, bank):
        return bank
    layers, stacks = bank[LAYERS], {}
    for _, run in groupby(sorted(layers), key=lambda number: _shapes(layers[number])):
        first, *others = run
        stacks[first] = jax.tree.map(
            lambda *leaves: jnp.stack(leaves, axis=1),
            layers[first],
            *(layers[number] for number in others),
        )
    others = {name: part for name, part in bank.items() if name != LAYERS}
    return {**others, STACKS: on_tpu(_row_major, stacks)}


def _unstacked(bank: PyTree) -> PyTree:
    if not _has(STACKS, bank):
        return bank
    layers = {}
    for first, stack in on_tpu(_row_major, bank[STACKS]).items():
        for index in range(jax.tree.leaves(stack)[0].shape[1]):
            layers[first + index] = jax.tree.map(
                lambda leaf, index=index: jax.lax.index_in_dim(leaf, index, 1, keepdims=False),
                stack,
            )
    others = {name: part for name, part in bank.items() if name != STACKS}
    return {**others, LAYERS: on_tpu(_row_major, layers)}


def _row_major(tree: PyTree) -> PyTree:
    """The tree with its arrays laid out as the state is.

    XLA would put the axis of the layers first, and so copy each stack of the state, forth and back.
    """
    return jax.tree.map(
        lambda x: with_layout_constraint(x, Layout(major_to_minor=tuple(range(x.ndim)))), tree
    )


def _shapes(layer: PyTree) -> tuple:
    leaves, structure = jax.tree.flatten(layer)
    return structure, [(leaf.shape, leaf.dtype) for leaf in leaves]
