"""The encoder families. To add one, write its file beside this one and add its entry here."""

from jtcse_jax.families.bert import BERT
from jtcse_jax.families.distilbert import DISTILBERT
from jtcse_jax.families.electra import ELECTRA
from jtcse_jax.families.family import Family
from jtcse_jax.families.modernbert import MODERNBERT
from jtcse_jax.families.mpnet import MPNET
from jtcse_jax.families.roberta import ROBERTA

FAMILIES: dict[str, Family] = {
    family.name: family for family in (BERT, ROBERTA, DISTILBERT, MPNET, ELECTRA, MODERNBERT)
}


def find_family(model_type: object) -> Family | None:
    """The family that a `model_type` of a `config.json` belongs to."""
    for family in FAMILIES.values():
        if model_type in (family.name, *family.relatives):
            return family
    return None


def supported() -> str:
    """The supported model types, as text for a message."""
    return ", ".join(
        name for family in FAMILIES.values() for name in (family.name, *family.relatives)
    )
