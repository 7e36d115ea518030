"""RoBERTa (arXiv 1907.11692), and models with its encoder: XLM-R and CamemBERT."""

from jtcse_jax.families import bert
from jtcse_jax.families.family import Family, Names

LM_HEAD = ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias")

ROBERTA = Family(
    name="roberta",
    title="RoBERTa",
    relatives=("xlm-roberta", "camembert"),
    model_class="RobertaModel",
    positions_after_padding=True,
    fields=bert.FIELDS,
    defaults=bert.DEFAULTS | {"pad_token_id": 1},
    fixed=bert.FIXED,
    written=bert.WRITTEN,
    names=Names(outside=bert.OUTSIDE | bert.POOLER, inside=bert.INSIDE, mlm_head=LM_HEAD),
)
