"""Trains, evaluates and uses unsupervised sentence encoders (JTCSE and its family) in JAX."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jtcse_jax.encoder import SentenceEncoder

# transformers gives us tokenizers alone; without torch it would advise, at its import, to get it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

__all__ = ["SentenceEncoder"]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    # Imported when asked for: it loads jax and transformers, which not every command needs.
    if name == "SentenceEncoder":
        from jtcse_jax.encoder import SentenceEncoder

        return SentenceEncoder
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
