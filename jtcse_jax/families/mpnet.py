"""MPNet (arXiv 2004.09297): no token types, and a bias by relative position in all layers."""

from jtcse_jax.families import bert
from jtcse_jax.families.family import Family, Names
from jtcse_jax.families.roberta import LM_HEAD

MPNET = Family(
    name="mpnet",
    title="MPNet",
    model_class="MPNetModel",
    positions_after_padding=True,
    relative_bias=True,
    fields={ours: theirs for ours, theirs in bert.FIELDS.items() if ours != "type_vocab_size"},
    defaults={"layer_norm_eps": 1e-12, "pad_token_id": 1, "activation": "gelu"},
    # transformers computes positions and distances with these numbers whatever the config has.
    fixed={"relative_attention_num_buckets": 32, "pad_token_id": 1},
    written={
        "relative_attention_num_buckets": 32,
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
    },
    names=Names(
        outside={
            "embeddings.word": "embeddings.word_embeddings",
            "embeddings.position": "embeddings.position_embeddings",
            "embeddings.norm": "embeddings.LayerNorm",
            "relative": "encoder.relative_attention_bias",
            **bert.POOLER,
        },
        inside=bert.INSIDE
        | {
            "attention.query": "attention.attn.q",
            "attention.key": "attention.attn.k",
            "attention.value": "attention.attn.v",
            "attention.output": "attention.attn.o",
            "attention_norm": "attention.LayerNorm",
        },
        mlm_head=LM_HEAD,
    ),
)
