"""ModernBERT (arXiv 2412.13663): rotary positions, local attention, GeGLU, pre-LayerNorm."""

from typing import Any

from jtcse_jax.families.family import Family, Names

ROPE = {"full_attention": "global_rope_theta", "sliding_attention": "local_rope_theta"}


def _flatten(config: dict[str, Any]) -> dict[str, Any]:
    """Turns the `layer_types` and `rope_parameters` of transformers 5 into the older fields."""
    config = dict(config)
    kinds = config.pop("layer_types", None)
    if kinds is not None:
        full = [number for number, kind in enumerate(kinds) if kind == "full_attention"]
        every = full[1] if len(full) > 1 else len(kinds)
        if full != list(range(0, len(kinds), every or 1)):
            raise ValueError("layer_types: only every n-th layer may have full_attention")
        config["global_attn_every_n_layers"] = every
    for kind, rope in (config.pop("rope_parameters", None) or {}).items():
        if kind not in ROPE or not isinstance(rope, dict) or rope.get("rope_type") != "default":
            raise ValueError("rope_parameters: only rope_type default is supported")
        if "rope_theta" in rope:
            config[ROPE[kind]] = rope["rope_theta"]
    return config


MODERNBERT = Family(
    name="modernbert",
    title="ModernBERT",
    model_class="ModernBertModel",
    general_tokenizer=True,
    encoder="modernbert",
    fields={
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_layers": "num_hidden_layers",
        "num_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "max_positions": "max_position_embeddings",
        "layer_norm_eps": "norm_eps",
        "pad_token_id": "pad_token_id",
        "activation": "hidden_activation",
        "global_every": "global_attn_every_n_layers",
        "local_window": "local_attention",
        "global_rope_theta": "global_rope_theta",
        "local_rope_theta": "local_rope_theta",
    },
    defaults={
        "max_positions": 8192,
        "layer_norm_eps": 1e-5,
        "pad_token_id": 50283,
        "activation": "gelu",
        "global_every": 3,
        "local_window": 128,
        "global_rope_theta": 160000.0,
        "local_rope_theta": 10000.0,
    },
    fixed={"attention_bias": False, "mlp_bias": False, "norm_bias": False},
    written={
        "attention_bias": False,
        "mlp_bias": False,
        "norm_bias": False,
        # Its tokenizer has them; the defaults of transformers may be outside the vocabulary.
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")),
        "embedding_dropout": 0.0,
        "attention_dropout": 0.0,
        "mlp_dropout": 0.0,
        "initializer_range": 0.02,
    },
    flatten=_flatten,
    names=Names(
        outside={
            "embeddings.word": "embeddings.tok_embeddings",
            "embeddings.norm": "embeddings.norm",
            "final_norm": "final_norm",
        },
        layers="layers",
        inside={
            "attention_norm": "attn_norm",
            "attention.query": "attn.query",
            "attention.key": "attn.key",
            "attention.value": "attn.value",
            "attention.output": "attn.Wo",
            "output_norm": "mlp_norm",
            "intermediate": "mlp.inner",
            "gate": "mlp.gate",
            "output": "mlp.Wo",
        },
        fused={
            "attn.Wqkv": ("attn.query", "attn.key", "attn.value"),
            "mlp.Wi": ("mlp.inner", "mlp.gate"),
        },
    ),
)
