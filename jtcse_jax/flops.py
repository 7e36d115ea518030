"""Floating-point operations of a step, by arithmetic, and what devices can do at most.

Multiplications and additions each count as one operation; only matrix products are counted, over
real tokens: fillers are waste, and count as such. Source of the formulas: the shapes of
`models/bert.py`; of the convention, PaLM (arXiv 2204.02311), appendix B.
"""

from typing import NamedTuple

import jax.numpy as jnp
from jax import Array

from jtcse_jax.architecture import Architecture, Cross
from jtcse_jax.batch import Batch
from jtcse_jax.config import ObjectiveConfig
from jtcse_jax.models.teacher import Teacher
from jtcse_jax.models.towers import Bank

_TERA = 1e12

# Dense products, without sparsity, from the makers' data sheets: bfloat16, then float32 where the
# device multiplies it as such. Longer names first: the first that is found in a kind counts.
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
    """What a batch asks of one tower, numbers or float32 scalars."""

    tokens: float | Array  #: real ones, of all views
    squares: float | Array  #: sum over the views of their squared lengths
    views: float | Array  #: sentence views

    @classmethod
    def of(cls, batch: Batch) -> "Work":
        """The work in a packed batch, of numpy or of jax."""
        real = batch.segments > 0
        # The squared length of a view is the sum of 2 p + 1 over its positions p.
        squares = jnp.where(real, 2.0 * batch.positions + 1, 0).sum()
        views = (real & (batch.positions == 0)).sum()
        # Not integers: products with them would leave 32 bits.
        return cls(*(each.astype(jnp.float32) for each in (real.sum(), squares, views)))


def forward_flops(
    architecture: Architecture, work: Work, *, pooling: str = "cls", crossed_layers: int = 0
) -> float | Array:
    """Operations of one tower's forward pass.

    A layer on T tokens whose squared lengths sum to S takes 2 T (4 D^2 + 2 D I) + 4 D S; the last
    one, where [CLS] is pooled, only keys and values of all tokens, and the rest for the V views.
    `crossed_layers` are run for the crossed stream too, the last one among them.
    """
    size, inner = architecture.hidden_size, architecture.intermediate_size
    layer = 2 * work.tokens * (4 * size**2 + 2 * size * inner) + 4 * size * work.squares
    last = layer
    if pooling == "cls":
        last = 2 * work.tokens * 2 * size**2 + 4 * size * work.tokens
        last += 2 * work.views * (2 * size**2 + 2 * size * inner)
    full = architecture.num_layers - 1 + max(crossed_layers - 1, 0)
    return full * layer + (1 + (crossed_layers > 0)) * last


def step_flops(
    bank: Bank, objective: ObjectiveConfig, batch: Batch, teacher: Teacher | None = None
) -> Array:
    """Operations of a training step, a float32 scalar: forward, and twice that backward.

    Of a teacher the forward pass alone. Left out, as they are small: poolers, losses, and the
    optimizer; the vocabulary's product of masked language modelling counts for the places hidden.
    """
    architecture, work = bank.architecture, Work.of(batch)
    if objective.name == "mlm":
        forward = _mlm_flops(architecture, work, objective.mask_share)
    else:
        crossed = crossed_layers(architecture, bank.cross) if objective.name == "jtcse" else 0
        forward = forward_flops(architecture, work, pooling=bank.pooling, crossed_layers=crossed)
    total = 3 * bank.num_towers * forward
    if teacher is not None:
        for member, rows in zip(teacher.banks, batch.teacher, strict=True):
            one = forward_flops(member.architecture, Work.of(rows), pooling=member.pooling)
            total += member.num_towers * one
    return total


def crossed_layers(architecture: Architecture, cross: Cross) -> int:
    """Layers that run once more for a crossed stream: in mode side from the first that crosses."""
    interval = cross.interval(architecture.num_layers) if cross.mode == "side" else None
    return architecture.num_layers - interval + 1 if interval else 0


def _mlm_flops(architecture: Architecture, work: Work, share: float) -> float | Array:
    """Forward, where the last layer is asked for a share of all tokens, and the vocabulary's."""
    size, hidden = architecture.hidden_size, share * work.tokens
    forward = forward_flops(architecture, work._replace(views=hidden))
    # What is asked for may stand anywhere, where [CLS] is asked for once a view.
    forward += 4 * size * (share * work.squares - work.tokens)
    return forward + 2 * hidden * size * (size + architecture.vocab_size)


def peak_flops(device_kind: str, compute_dtype: str) -> float | None:
    """Operations a second of one device at most; None where the table does not have it."""
    for name, (bfloat16, float32) in _PEAKS.items():
        if name in device_kind:
            peak = bfloat16 if compute_dtype == "bfloat16" else float32
            return peak * _TERA if peak else None
    return None
