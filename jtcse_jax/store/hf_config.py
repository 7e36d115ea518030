"""The `config.json` of a Hugging Face folder: which architectures are supported."""

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from jtcse_jax.architecture import Architecture
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.files import read_json

CONFIG = "config.json"

FAMILIES: dict[str, Literal["bert", "roberta"]] = {
    "bert": "bert",
    "roberta": "roberta",
    "xlm-roberta": "roberta",
    "camembert": "roberta",
}
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_positions",
}
# A small config must not cause hours of work or gigabytes of memory before the weights are read.
LARGEST = {"num_layers": 128, "type_vocab_size": 256}
LARGEST_OTHER = 2**24
# Fields that change the computation, and the only supported value of each.
FIXED = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}


def read_architecture(folder: str | Path) -> Architecture:
    """The architecture in the folder's `config.json`; UserError if it is not supported."""
    path = Path(folder) / CONFIG
    config = read_json(path, advice="name a Hugging Face folder")
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise UserError(f"{path}: model_type = {reprlib.repr(kind)}: supported are {supported}.")
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            found = reprlib.repr(config[name])
            raise UserError(f"{path}: {name} = {found}: only {value!r} is supported.")
    family = FAMILIES[kind]
    fields: dict[str, Any] = {ours: config.get(theirs) for theirs, ours in SIZES.items()}
    fields |= {
        "type_vocab_size": config.get("type_vocab_size", 2),
        "layer_norm_eps": config.get("layer_norm_eps", 1e-12),
        "pad_token_id": config.get("pad_token_id", 1 if family == "roberta" else 0),
    }
    check_shape(path, fields, {ours: theirs for theirs, ours in SIZES.items()})
    return Architecture(family=family, **fields)


def check_shape(
    path: Path, fields: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> None:
    """Raises UserError for impossible numbers, before anything of that size is allocated.

    Args:
      path: the file that has the numbers.
      fields: the fields of an `Architecture`, except its family.
      names: the names of fields in the file, if they differ.
    """
    names = names or {}
    for name, value in fields.items():
        where = f"{path}: {names.get(name, name)} = {reprlib.repr(value)}"
        if name == "layer_norm_eps":
            if not (type(value) is float and 0 < value < math.inf):
                raise UserError(f"{where}: give a number above 0.")
            continue
        least = 0 if name == "pad_token_id" else 1
        most = LARGEST.get(name, LARGEST_OTHER)
        if not (type(value) is int and least <= value <= most):
            raise UserError(f"{where}: give a whole number from {least} to {most}.")
    if fields["hidden_size"] % fields["num_heads"]:
        heads, width = (names.get(name, name) for name in ("num_heads", "hidden_size"))
        raise UserError(
            f"{path}: {heads} = {fields['num_heads']} does not divide "
            f"{width} = {fields['hidden_size']}."
        )


def to_config(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`; dropout and initialiser fields have the defaults of transformers."""
    bert = architecture.family == "bert"
    return {
        "architectures": ["BertModel" if bert else "RobertaModel"],
        "model_type": architecture.family,
        **{theirs: getattr(architecture, ours) for theirs, ours in SIZES.items()},
        "type_vocab_size": architecture.type_vocab_size,
        "layer_norm_eps": architecture.layer_norm_eps,
        "pad_token_id": architecture.pad_token_id,
        "hidden_act": FIXED["hidden_act"],
        "position_embedding_type": FIXED["position_embedding_type"],
        "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1,
        "initializer_range": 0.02,
        "dtype": "float32",
    }
