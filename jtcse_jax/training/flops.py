"""Counts the floating-point operations of a step; peak speeds of devices.

Multiplications and additions each count as one operation. Only matrix products over real tokens
are counted, so that fillers lower the measured utilisation. The formulas follow the shapes in
`models/bert.py`, the convention is that of PaLM (arXiv 2204.02311), appendix B.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.batch import Batch
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.models.encoders import encoder_class
from jtcse_jax.models.teacher import Teacher
from jtcse_jax.models.towers import Bank

_TERA = 1e12

# Dense products, without sparsity, from the makers' data sheets: bfloat16, then float32 if the
# device multiplies in float32. The first name that is part of a device's kind counts, so longer
# names come first.
_PEAKS = {
    "H100 PCIe": (756, 51),
    "H100 NVL": (835, 60),
    "H100": (989, 67),
    "H200": (989, 67),
    "B200": (2250, 75),
    "A100": (312, 19.5),
    "L40S": (362, 91.6),
    "L40": (181, 90.5),
    "L4": (121, 30.3),
    "TPU v6 lite": (918, None),
    "TPU v5 lite": (197, None),
    "TPU v5": (459, None),
    "TPU v4": (275, None),
}


class Work(NamedTuple):
    """The work of one tower for a batch, as numbers or float32 scalars."""

    tokens: float | Array  #: number of real tokens in all views
    squares: float | Array  #: sum over the views of their squared lengths
    views: float | Array  #: number of sentence views

    @classmethod
    def of(cls, batch: Batch) -> "Work":
        """Counts the work in a packed batch of numpy or jax arrays."""
        real = batch.segments > 0
        # The squared length of a view is the sum of 2 p + 1 over its positions p.
        squares = jnp.where(real, 2.0 * batch.positions + 1, 0).sum()
        views = (real & (batch.positions == 0)).sum()
        # Floats, because products of these integers would overflow 32 bits.
        return cls(*(each.astype(jnp.float32) for each in (real.sum(), squares, views)))


def forward_flops(
    architecture: Architecture, work: Work, *, pooling: str = "cls", crossed_layers: int = 0
) -> float | Array:
    """Operations in the forward pass of one tower.

    A layer on T tokens whose squared lengths sum to S takes 2 T (4 D^2 + 2 D I) + 4 D S (3 D I for
    a gated feed-forward layer; local attention is counted whole, as it is computed). With [CLS]
    pooling the last layer computes keys and values for all tokens, but the rest for V views only.
    `crossed_layers`, including the last, run a second time for the crossed stream.
    """
    size = architecture.hidden_size
    products = encoder_class(architecture).feed_forward_products
    forward = products * size * architecture.intermediate_size
    layer = 2 * work.tokens * (4 * size**2 + forward) + 4 * size * work.squares
    last = layer
    if pooling == "cls":
        last = 2 * work.tokens * 2 * size**2 + 4 * size * work.tokens
        last += 2 * work.views * (2 * size**2 + forward)
    full = architecture.num_layers - 1 + max(crossed_layers - 1, 0)
    return full * layer + (1 + (crossed_layers > 0)) * last


def step_flops(
    bank: Bank, objective: ObjectiveConfig, batch: Batch, teacher: Teacher | None = None
) -> Array:
    """Operations of a training step, a float32 scalar: forward, and twice that backward.

    A teacher has a forward pass only. Poolers, losses and the optimizer are small and left out. In
    masked language modelling the product with the vocabulary counts for the hidden words.
    """
    architecture, work = bank.architecture, Work.of(batch)
    if not objective.traits.embeds:
        forward = _mlm_flops(architecture, work, objective.mask_share)
    else:
        crossed = crossed_layers(architecture, bank.cross) if objective.traits.crosses else 0
        forward = forward_flops(architecture, work, pooling=bank.pooling, crossed_layers=crossed)
    total = 3 * bank.num_towers * forward
    if teacher is not None:
        for member, rows in zip(teacher.banks, batch.teacher, strict=True):
            one = forward_flops(member.architecture, Work.of(rows), pooling=member.pooling)
            total += member.num_towers * one
    assert isinstance(total, Array)  # `Work.of` counts in arrays
    return total


def crossed_layers(architecture: Architecture, cross: Cross) -> int:
    """Layers that run again for a crossed stream, from the first crossed one on; 0 in mode main."""
    interval = cross.interval(architecture.num_layers) if cross.mode == "side" else None
    return architecture.num_layers - interval + 1 if interval else 0


def _mlm_flops(architecture: Architecture, work: Work, share: float) -> float | Array:
    """A forward pass with only `share` of the tokens in the last layer, and the vocabulary."""
    size, hidden = architecture.hidden_size, share * work.tokens
    forward = forward_flops(architecture, work._replace(views=hidden))
    # The hidden words may stand anywhere in a sentence; `forward_flops` assumes one [CLS] per view.
    forward += 4 * size * (share * work.squares - work.tokens)
    width = architecture.embedding_width
    return forward + 2 * hidden * width * (size + architecture.vocab_size)


def peak_flops(device_kind: str, compute_dtype: str) -> float | None:
    """Peak operations per second of one device; None if the table does not have it."""
    for name, (bfloat16, float32) in _PEAKS.items():
        if name in device_kind:
            peak = bfloat16 if compute_dtype == "bfloat16" else float32
            return peak * _TERA if peak else None
    return None
