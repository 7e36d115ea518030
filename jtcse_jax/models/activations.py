"""The activations of feed-forward layers, by their names at Hugging Face."""

from collections.abc import Callable
from functools import partial

import jax
from jax import Array

from jtcse_jax.architecture import Activation
from jtcse_jax.models import lean

_tanh_gelu = partial(jax.nn.gelu, approximate=True)


def activation(name: Activation) -> Callable[[Array], Array]:
    """The function of this name, in the dtype of its argument."""
    return {
        "gelu": lean.gelu,
        "gelu_new": _tanh_gelu,
        "gelu_pytorch_tanh": _tanh_gelu,
        "relu": jax.nn.relu,
    }[name]
