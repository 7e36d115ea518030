"""States of checkpoints that tests save, and damage to their files."""

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jtcse_jax.store.checkpoint import Checkpoints


class Tower(NamedTuple):
    kernel: Any
    layers: list


def make_state(step: int, *, size: int = 16) -> dict:
    """A state whose every value tells its step: dictionaries, tuples, lists, optax's own nodes."""
    kernel = jnp.arange(size * 8, dtype=jnp.float32).reshape(size, 8) / 3 + step
    params = {"tower": Tower(kernel, [jnp.full((3,), step, jnp.bfloat16)]), "bias": kernel[0] * 7}
    optimizer = optax.adamw(optax.constant_schedule(1e-3))
    _, opt_state = optimizer.update(jax.tree.map(jnp.sin, params), optimizer.init(params), params)
    return {"params": params, "optimizer": opt_state}


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree)


def assert_same_bits(got, want) -> None:
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert one.dtype == other.dtype and one.shape == other.shape
        assert np.asarray(one).tobytes() == np.asarray(other).tobytes()


def save_steps(directory, scores: dict[int, float | None], **options) -> list[int]:
    with Checkpoints(directory, **options) as checkpoints:
        for step, score in scores.items():
            metrics = None if score is None else {"dev_spearman": score, "loss": 1.0}
            checkpoints.save(step, make_state(step), metrics)
        return checkpoints.steps()


def largest_file(folder: Path) -> Path:
    return max((folder / "params").rglob("*"), key=lambda p: p.is_file() and p.stat().st_size)


def flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
