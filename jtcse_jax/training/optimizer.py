"""AdamW with a schedule, a decay mask and clipping, all from optax."""

from collections import defaultdict
from functools import lru_cache

import jax
import jax.numpy as jnp
import optax
from jax import Array

from jtcse_jax.config import OptimizerConfig


def make_optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    """The optimizer of a run of `total_steps` steps (warm-up included).

    Runs with equal optimizers get the same object, so they can share a compiled step.
    """
    return _optimizer(config, 0 if config.schedule == "constant" else total_steps)


@lru_cache(maxsize=8)
def _optimizer(config: OptimizerConfig, total_steps: int) -> optax.GradientTransformation:
    adamw = optax.adamw(
        make_schedule(config, total_steps),
        b1=config.b1,
        b2=config.b2,
        eps=config.eps,
        weight_decay=config.weight_decay,
        mask=None if config.decay == "all" else only_kernels,
    )
    if config.max_grad_norm is None:
        return adamw
    return optax.chain(clip_by_global_norm(config.max_grad_norm), adamw)


def clip_by_global_norm(max_norm: float) -> optax.GradientTransformation:
    """As optax's, but with the norm of `global_norm`, which the step needs too."""

    def clip(grads: optax.Updates, _: optax.Params | None) -> optax.Updates:
        scale = max_norm / jnp.maximum(global_norm(grads), max_norm)
        return jax.tree.map(lambda grad: scale * grad, grads)

    return optax.stateless(clip)


def global_norm(tree: optax.Updates) -> Array:
    """The Euclidean norm of all leaves together, a float32 scalar.

    Leaves of one shape, those of equal layers, are reduced together: on a GPU that takes two
    kernels for each shape, not for each leaf, and the stack is never written.
    """
    by_shape = defaultdict(list)
    for leaf in jax.tree.leaves(tree):
        by_shape[leaf.shape].append(leaf)
    return jnp.sqrt(sum(jnp.square(jnp.stack(leaves)).sum() for leaves in by_shape.values()))


def make_schedule(config: OptimizerConfig, total_steps: int) -> optax.Schedule:
    """Learning rate by step: linear warm-up, then constant or decreasing to 0 at total_steps."""
    peak = config.learning_rate
    remaining = max(total_steps - config.warmup_steps, 1)
    after = {
        "constant": optax.constant_schedule(peak),
        "linear": optax.linear_schedule(peak, 0.0, remaining),
        "cosine": optax.cosine_decay_schedule(peak, remaining),
    }[config.schedule]
    if not config.warmup_steps:
        return after
    warmup = optax.linear_schedule(0.0, peak, config.warmup_steps)
    return optax.join_schedules([warmup, after], [config.warmup_steps])


def only_kernels(params: optax.Params) -> optax.Params:
    """True for kernels of matrix products and embeddings, False for biases and LayerNorms."""
    return jax.tree.map_with_path(lambda path, _: path[-1].key in ("kernel", "embedding"), params)
