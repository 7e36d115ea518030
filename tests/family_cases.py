"""A small torch model of each family, where torch is installed."""

import numpy as np
import pytest
from torch_models import NO_TORCH

SIZES = {
    "vocab_size": 50,
    "hidden_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "intermediate_size": 20,
    "max_position_embeddings": 200,
    "pad_token_id": 1,
}
# Class name at transformers, config, and the values' projection inside a layer. Every number
# differs from its default, so that one that is not read shows.
CASES = {
    "distilbert": (
        "DistilBert",
        {
            "vocab_size": 50,
            "dim": 24,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 20,
            "max_position_embeddings": 200,
            "pad_token_id": 1,
        },
        "transformer.layer.1.attention.v_lin",
    ),
    "mpnet": (
        "MPNet",
        SIZES | {"layer_norm_eps": 1e-3, "hidden_act": "gelu_new"},
        "encoder.layer.3.attention.attn.v",
    ),
    "electra": (
        "Electra",
        SIZES | {"embedding_size": 12, "layer_norm_eps": 1e-3, "hidden_act": "relu"},
        "encoder.layer.3.attention.self.value",
    ),
    "modernbert": (
        "ModernBert",
        SIZES
        | {
            "norm_eps": 1e-3,
            "local_attention": 10,
            "global_attn_every_n_layers": 2,
            "hidden_activation": "gelu_pytorch_tanh",
            "rope_parameters": {
                "full_attention": {"rope_type": "default", "rope_theta": 100.0},
                "sliding_attention": {"rope_type": "default", "rope_theta": 20.0},
            },
        }
        | dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 1),
        "layers.3.attn.Wqkv",
    ),
}
LENGTHS = (150, 1, 9, 30)  # the first is longer than the distances that MPNet tells apart


def torch_family(folder, family, seed=0, **fields):
    """A random torch model saved in `folder`, every parameter far from its initial value."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    import transformers

    name, config, _ = CASES[family]
    torch.manual_seed(seed)
    config = getattr(transformers, f"{name}Config")(**config | fields)
    model = getattr(transformers, f"{name}Model")(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(folder)
    return model


def sentences(vocab=50, pad=1):
    """Tokens [4, 150] and which of them are real."""
    mask = np.arange(max(LENGTHS)) < np.array(LENGTHS)[:, None]
    random = np.random.default_rng(0)
    return np.where(mask, random.integers(5, vocab, mask.shape), pad).astype(np.int32), mask


def torch_hidden(model, tokens, mask):
    """Last hidden states [4, 150, D]."""
    import torch

    with torch.no_grad():
        return model(
            input_ids=torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long()
        ).last_hidden_state.numpy()


def one_row(tokens, order=(1, 2, 3, 0), length=200):
    """The sentences in one row of 200: tokens, positions, segments [1, 200]; start of each."""
    row, positions, segments = np.full((1, length), 1, np.int32), *np.zeros((2, 1, length), "i4")
    starts, end = {}, 3  # fillers first
    for slot, number in enumerate(order):
        span = slice(end, end + LENGTHS[number])
        row[0, span] = tokens[number, : LENGTHS[number]]
        positions[0, span] = np.arange(LENGTHS[number])
        segments[0, span] = slot + 1
        starts[number], end = end, span.stop
    return row, positions, segments, starts
