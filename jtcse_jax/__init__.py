"""Trains, evaluates and uses unsupervised sentence encoders (JTCSE and its family) in JAX."""

import os
import sys
from typing import TYPE_CHECKING

from jtcse_jax import jax_variables
from jtcse_jax.version import __version__

if TYPE_CHECKING:
    from jtcse_jax.encoding.encoder import SentenceEncoder

if jax_variables.is_command(sys.argv, sys.orig_argv):
    jax_variables.ignore_others(os.environ)

# We use only the tokenizers of transformers; without torch it prints advice to install it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__all__ = ["SentenceEncoder", "__version__"]


def __dir__() -> list[str]:
    return [*__all__, "__doc__", "__file__", "__name__", "__path__"]


def __getattr__(name: str) -> object:
    # Imported on first use: it loads jax and transformers, which not every command needs.
    if name == "SentenceEncoder":
        from jtcse_jax.encoding.encoder import SentenceEncoder

        return SentenceEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
