"""DistilBERT (arXiv 1910.01108): BERT without token types and pooler."""

from jtcse_jax.families.family import Family, Names

DISTILBERT = Family(
    name="distilbert",
    title="DistilBERT",
    model_class="DistilBertModel",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "dim",
        "num_layers": "n_layers",
        "num_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "max_positions": "max_position_embeddings",
        "pad_token_id": "pad_token_id",
        "activation": "activation",
    },
    defaults={"pad_token_id": 0, "activation": "gelu"},
    written={"dropout": 0.1, "attention_dropout": 0.1, "initializer_range": 0.02},
    names=Names(
        outside={
            "embeddings.word": "embeddings.word_embeddings",
            "embeddings.position": "embeddings.position_embeddings",
            "embeddings.norm": "embeddings.LayerNorm",
        },
        layers="transformer.layer",
        inside={
            "attention.query": "attention.q_lin",
            "attention.key": "attention.k_lin",
            "attention.value": "attention.v_lin",
            "attention.output": "attention.out_lin",
            "attention_norm": "sa_layer_norm",
            "intermediate": "ffn.lin1",
            "output": "ffn.lin2",
            "output_norm": "output_layer_norm",
        },
        mlm_head=("vocab_transform", "vocab_layer_norm", "vocab_projector.bias"),
    ),
)
