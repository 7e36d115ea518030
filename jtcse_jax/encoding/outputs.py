"""The arrays of other libraries in which `encode` returns vectors."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import jax.numpy as jnp
import numpy as np
from jax import Array

from jtcse_jax.errors import UserError

if TYPE_CHECKING:
    import torch


def converter(output: str) -> Callable[[np.ndarray], "np.ndarray | Array | torch.Tensor"]:
    """A function from vectors to an array of "numpy", "jax" or "torch"; UserError for others."""
    if output == "numpy":
        return lambda vectors: vectors
    if output == "jax":
        return jnp.asarray
    if output != "torch":
        raise UserError(f"output = {output!r}: choose numpy, jax or torch.")
    try:
        import torch
    except ImportError as error:
        raise UserError("output torch needs the package torch: pip install torch") from error
    return torch.from_numpy
