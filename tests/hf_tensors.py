"""The tensors of a small BERT under the names of transformers."""

import json

import numpy as np
from safetensors.numpy import save_file

from jtcse_jax.architecture import Architecture

VOCAB, HIDDEN, INNER, LONGEST = 30, 8, 16, 20
ARCHITECTURE = Architecture(
    vocab_size=VOCAB,
    hidden_size=HIDDEN,
    num_layers=2,
    num_heads=2,
    intermediate_size=INNER,
    max_positions=LONGEST,
)
CONFIG = {
    "model_type": "bert",
    "vocab_size": VOCAB,
    "hidden_size": HIDDEN,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": INNER,
    "max_position_embeddings": LONGEST,
}


def bert_tensors():
    """A BERT of two layers with the names and shapes of `BertModel.state_dict()`."""
    shapes = {
        "embeddings.word_embeddings.weight": (VOCAB, HIDDEN),
        "embeddings.position_embeddings.weight": (LONGEST, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
        "embeddings.LayerNorm.weight": (HIDDEN,),
        "embeddings.LayerNorm.bias": (HIDDEN,),
        "pooler.dense.weight": (HIDDEN, HIDDEN),
        "pooler.dense.bias": (HIDDEN,),
    }
    for number in range(2):
        layer = f"encoder.layer.{number}."
        for name in ("self.query", "self.key", "self.value", "output.dense"):
            shapes[f"{layer}attention.{name}.weight"] = (HIDDEN, HIDDEN)
            shapes[f"{layer}attention.{name}.bias"] = (HIDDEN,)
        shapes[f"{layer}intermediate.dense.weight"] = (INNER, HIDDEN)
        shapes[f"{layer}intermediate.dense.bias"] = (INNER,)
        shapes[f"{layer}output.dense.weight"] = (HIDDEN, INNER)
        shapes[f"{layer}output.dense.bias"] = (HIDDEN,)
        for norm in ("attention.output.LayerNorm", "output.LayerNorm"):
            shapes[f"{layer}{norm}.weight"] = (HIDDEN,)
            shapes[f"{layer}{norm}.bias"] = (HIDDEN,)
    random = np.random.default_rng(0)
    return {name: random.normal(size=shape).astype("f4") for name, shape in shapes.items()}


def save(folder, tensors, **config):
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(CONFIG | config))
    save_file(tensors, folder / "model.safetensors")
    return folder
