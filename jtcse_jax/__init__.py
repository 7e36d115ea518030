"""Trains, evaluates and uses unsupervised sentence encoders (JTCSE and its family) in JAX."""

import os

# transformers gives us tokenizers alone; without torch it would advise, at its import, to get it.
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

from jtcse_jax.encoder import SentenceEncoder  # noqa: E402

__all__ = ["SentenceEncoder"]
__version__ = "0.1.0"
