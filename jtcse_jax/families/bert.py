"""BERT (arXiv 1810.04805)."""

from jtcse_jax.families.family import Family, Names

FIELDS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
    "max_positions": "max_position_embeddings",
    "type_vocab_size": "type_vocab_size",
    "layer_norm_eps": "layer_norm_eps",
    "pad_token_id": "pad_token_id",
    "activation": "hidden_act",
}
DEFAULTS = {"type_vocab_size": 2, "layer_norm_eps": 1e-12, "pad_token_id": 0, "activation": "gelu"}
FIXED = {"position_embedding_type": "absolute", "is_decoder": False, "add_cross_attention": False}
WRITTEN = {
    "position_embedding_type": FIXED["position_embedding_type"],
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1,
    "initializer_range": 0.02,
}
OUTSIDE = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
}
INSIDE = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}
POOLER = {"pooler": "pooler.dense"}

BERT = Family(
    name="bert",
    title="BERT",
    model_class="BertModel",
    fields=FIELDS,
    defaults=DEFAULTS,
    fixed=FIXED,
    written=WRITTEN,
    names=Names(
        outside=OUTSIDE | POOLER,
        inside=INSIDE,
        mlm_head=(
            "cls.predictions.transform.dense",
            "cls.predictions.transform.LayerNorm",
            "cls.predictions.bias",
        ),
    ),
)
