"""The parts that encoders are made of, with BERT's initial values."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array
from jax.sharding import PartitionSpec

from jtcse_jax.architecture import Architecture

TOWER_AXIS = "tower"
INITIAL_STDDEV = 0.02  # of kernels and embeddings, as in BERT
initializer = jax.nn.initializers.normal(INITIAL_STDDEV)


def look_up(table: nnx.Embed, ids: Array) -> Array:
    """The embeddings [R, ..., D] of ids [R, ...].

    If each tower has its own devices, the compiler would gather the gradient of all rows on every
    device before adding it up. Under this `shard_map` each device first adds up that of its own
    rows.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if TOWER_AXIS not in mesh.manual_axes:
        return table(ids)
    rows = PartitionSpec(mesh.auto_axes)
    return jax.shard_map(
        lambda embedding, ids: embedding[ids],
        axis_names=set(mesh.auto_axes),
        in_specs=(PartitionSpec(), rows),
        out_specs=rows,
        check_vma=False,
    )(table.embedding[...], ids)


def dense(inputs: int, outputs: int, dtype, rngs: nnx.Rngs, *, use_bias: bool = True) -> nnx.Linear:
    """A linear layer whose products are computed in `dtype`."""
    return nnx.Linear(
        inputs,
        outputs,
        use_bias=use_bias,
        kernel_init=initializer,
        dtype=dtype,
        precision=exact(dtype),
        rngs=rngs,
    )


def weights(layer: nnx.Linear, dtype) -> tuple[Array, Array | None]:
    """The kernel [D, E] of a linear layer and its bias [E], or None if it has none, in `dtype`."""
    bias = None if layer.bias is None else layer.bias[...].astype(dtype)
    return layer.kernel[...].astype(dtype), bias


def exact(dtype) -> jax.lax.Precision | None:
    """Full float32 precision for float32 products: accelerators would round the factors."""
    return jax.lax.Precision.HIGHEST if dtype == jnp.float32 else None


def on_tpu(form: Callable[[Any], Any], x: Any) -> Any:
    """form(x) in a program for a TPU, x in one for another device; they have the same values."""
    return jax.lax.platform_dependent(x, tpu=form, default=lambda x: x)


def embed(rows: int, size: int, rngs: nnx.Rngs) -> nnx.Embed:
    """A table of `rows` embeddings."""
    return nnx.Embed(rows, size, embedding_init=initializer, rngs=rngs)


def layer_norm(
    architecture: Architecture,
    dtype,
    rngs: nnx.Rngs,
    *,
    size: int | None = None,
    use_bias: bool = True,
) -> nnx.LayerNorm:
    """A LayerNorm over `size` channels, by default hidden_size."""
    # Not the fast variance E[x^2] - E[x]^2: it cancels if one channel is large, as in BERT.
    return nnx.LayerNorm(
        architecture.hidden_size if size is None else size,
        epsilon=architecture.layer_norm_eps,
        use_bias=use_bias,
        dtype=dtype,
        use_fast_variance=False,
        rngs=rngs,
    )
