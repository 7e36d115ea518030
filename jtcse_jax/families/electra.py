"""ELECTRA (arXiv 2003.10555): embeddings of another width, projected, and no pooler."""

from jtcse_jax.families import bert
from jtcse_jax.families.family import Family, Names

ELECTRA = Family(
    name="electra",
    title="ELECTRA",
    model_class="ElectraModel",
    fields=bert.FIELDS | {"embedding_size": "embedding_size"},
    defaults=bert.DEFAULTS | {"embedding_size": 128},
    fixed=bert.FIXED,
    written=bert.WRITTEN,
    names=Names(
        outside=bert.OUTSIDE | {"embeddings.project": "embeddings_project"},
        inside=bert.INSIDE,
        mlm_head=(
            "generator_predictions.dense",
            "generator_predictions.LayerNorm",
            "generator_lm_head.bias",
        ),
    ),
)
