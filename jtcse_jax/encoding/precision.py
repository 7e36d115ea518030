"""Vectors in fewer bits, as `sentence_transformers.util.quantize_embeddings` makes them."""

from typing import Literal, get_args

import numpy as np

from jtcse_jax.errors import UserError

Precision = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]


def quantized(vectors: np.ndarray, precision: Precision) -> np.ndarray:
    """Vectors [n, D] float32 in another precision.

    "float16" is rounded. "int8" and "uint8" divide the range that each component has in these
    vectors into 255 steps. "binary" (int8) and "ubinary" (uint8) have a bit for each component,
    whether it is above 0, in [n, D / 8] bytes. Raises UserError for another precision, and for
    "int8" and "uint8" of a single vector, which has no range.
    """
    if precision not in get_args(Precision):
        raise UserError(
            f"precision = {precision!r}: choose one of {', '.join(get_args(Precision))}."
        )
    if precision in ("float32", "float16"):
        return vectors.astype(precision, copy=False)
    if precision == "ubinary":
        return np.packbits(vectors > 0, axis=-1)
    if precision == "binary":
        return (np.packbits(vectors > 0, axis=-1) - 128).astype(np.int8)
    if len(vectors) == 0:
        return vectors.astype(precision)
    if len(vectors) == 1:
        raise UserError(f"precision = {precision!r} needs several sentences, for their range.")
    least = vectors.min(axis=0)
    steps = (vectors.max(axis=0) - least) / 255
    steps = np.where(steps == 0, 1, steps)
    values = np.clip(np.floor((vectors - least) / steps), 0, 255)
    return values.astype(np.uint8) if precision == "uint8" else (values - 128).astype(np.int8)
