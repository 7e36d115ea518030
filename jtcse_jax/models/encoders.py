"""The encoder of each family: the code of one tower."""

from jtcse_jax.architecture import Architecture
from jtcse_jax.families.registry import FAMILIES
from jtcse_jax.models import bert, modernbert

ENCODERS: dict[str, type[bert.Encoder]] = {
    "bert": bert.Encoder,
    "modernbert": modernbert.Encoder,
}


def encoder_class(architecture: Architecture) -> type[bert.Encoder]:
    """The encoder for an architecture."""
    return ENCODERS[FAMILIES[architecture.family].encoder]
