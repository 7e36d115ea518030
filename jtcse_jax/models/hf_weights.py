"""Hugging Face folders of BERT and RoBERTa encoders, read and written without torch.

A tensor that is missing, extra or misshaped is an error, and one error lists them all; the table of
names is `hf_names.py`.
"""

import importlib.util
import json
import logging
import math
import os
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import numpy as np
from jax import Array
from safetensors import SafetensorError
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from jtcse_jax.architecture import Architecture
from jtcse_jax.errors import UserError
from jtcse_jax.models import hf_names
from jtcse_jax.models.hf_files import WEIGHTS, read_json, read_tensors
from jtcse_jax.models.towers import Params

logger = logging.getLogger(__name__)

PACKAGE = "package:"
CONFIG = "config.json"

FAMILIES = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta"}
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_positions",
}
# A config of a few bytes must not ask for hours and gigabytes before the weights are looked at.
LARGEST = {"num_layers": 128, "type_vocab_size": 256}
LARGEST_OTHER = 2**24
# Fields that change the computation, and the only value computed here.
FIXED = {
    "hidden_act": "gelu",
    "position_embedding_type": "absolute",
    "is_decoder": False,
    "add_cross_attention": False,
}
TOKENIZER_FILES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model")


def find_folder(name: str) -> Path:
    """The local folder `name`, else the downloaded (or already cached) hub repository `name`.

    `package:NAME/FOLDER` is a folder inside an installed Python package. Raises UserError if there
    is no such folder, package or repository.
    """
    if name.startswith(PACKAGE):
        return _find_in_package(name)
    folder = os.path.expanduser(name)
    if os.path.isdir(folder):
        return Path(folder)
    try:
        patterns = ["*.json", "*.txt", "*.safetensors"]
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # a dozen types: bad name, unknown, gated, offline, timeout ...
        reason = str(error).strip().split("\n")[0]
        raise UserError(
            f"{name} is neither a folder nor a reachable Hugging Face repository: correct the "
            "name, train it first if it is a run of yours, or download it and give its folder "
            f"({type(error).__name__}: {reason})."
        ) from error


def read_architecture(folder: str | Path) -> Architecture:
    """The architecture in the folder's `config.json`; UserError for one not computed here."""
    path = Path(folder) / CONFIG
    config = read_json(path)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in FAMILIES:
        supported = ", ".join(FAMILIES)
        raise UserError(f"{path}: model_type = {reprlib.repr(kind)}: supported are {supported}.")
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            found = reprlib.repr(config[name])
            raise UserError(f"{path}: {name} = {found}: only {value!r} is supported.")
    family = FAMILIES[kind]
    fields = {ours: config.get(theirs) for theirs, ours in SIZES.items()}
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
    """Raises UserError for numbers that no encoder has, before anything of that size is made.

    Args:
      path: where they stand.
      fields: of an `Architecture`, all but its family.
      names: what the file calls them, where that differs.
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


def read_tower(
    folder: str | Path, architecture: Architecture, *, key: Array | None = None
) -> Params:
    """One tower's parameters from `model.safetensors`, whole or sharded: numpy float32 arrays.

    float16 and bfloat16 are widened. A checkpoint without pooler gets a fresh one, normal(0, 0.02)
    drawn from `key` (by default a fixed one), and says so; one without token types gets zeros.
    Raises UserError for a damaged file, and for tensors that do not fit the architecture.
    """
    folder = Path(folder)
    shapes = hf_names.tensor_shapes(architecture)
    tensors, problems = hf_names.encoder_tensors(read_tensors(folder))
    token_types, pooler = "embeddings.token_type_embeddings.weight", "pooler.dense."
    if token_types not in tensors:
        tensors[token_types] = np.zeros(shapes[token_types], np.float32)
    has_pooler = any(name.startswith(pooler) for name in tensors)
    ours = {name: shape for name, shape in shapes.items() if has_pooler or pooler not in name}
    problems += hf_names.misfits(tensors, ours)
    if problems:
        raise UserError(
            f"{folder}: {len(problems)} tensors do not fit the encoder of {CONFIG} (is it of this "
            f"model?): {'; '.join(problems)}."
        )
    # Only now: its size is that of weights that are there.
    if not has_pooler:
        logger.warning("%s has no pooler: a new one is drawn, normal(0, 0.02).", folder)
        key = jax.random.key(0) if key is None else key
        kernel = 0.02 * jax.random.normal(key, shapes[pooler + "weight"])
        tensors[pooler + "weight"] = np.asarray(kernel)
        tensors[pooler + "bias"] = np.zeros(shapes[pooler + "bias"], np.float32)
    return hf_names.to_tower(tensors, architecture)


def read_mlm_head(folder: str | Path, architecture: Architecture) -> Params | None:
    """The head of masked language modelling beside a tower, as `mlm_head.init` without the axis K.

    None where the folder has none (or only parts of one). Errors as `read_tower`.
    """
    tensors = read_tensors(Path(folder))
    return hf_names.to_mlm_head(tensors, architecture)


def write_tower(
    folder: str | Path, architecture: Architecture, params: Params, tokenizer: Any = None
) -> None:
    """Writes one tower as a folder that `transformers.AutoModel.from_pretrained` opens.

    Args:
      folder: made if absent; files of the same names are replaced.
      architecture: shape of the encoder.
      params: as from `read_tower`, or one of `towers.unstack`; written as float32.
      tokenizer: a transformers tokenizer whose files go beside the weights.

    Raises UserError for parameters that do not fit, or a folder that cannot be written.
    """
    folder = Path(folder)
    tensors = hf_names.to_tensors(params)
    problems = hf_names.misfits(tensors, hf_names.tensor_shapes(architecture))
    if problems:
        raise UserError(f"{folder}: parameters do not fit: {'; '.join(problems)}.")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_config(architecture), indent=2) + "\n"
        (folder / CONFIG).write_text(text, encoding="utf-8")
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        if tokenizer is not None:
            tokenizer.save_pretrained(folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be written: {error}.") from error


def load_tokenizer(folder: str | Path) -> Any:
    """The folder's fast transformers tokenizer; UserError when there is none."""
    folder = Path(folder)
    advice = "save one there with `tokenizer.save_pretrained`, or name another folder."
    # Without this, transformers makes a tokenizer of the five special tokens from config.json.
    if not any(path for pattern in TOKENIZER_FILES for path in folder.glob(pattern)):
        raise UserError(f"{folder}: no tokenizer ({', '.join(TOKENIZER_FILES)}): {advice}")
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            folder, local_files_only=True, trust_remote_code=False
        )
    except Exception as error:  # of many types, from transformers and tokenizers
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{folder}: its tokenizer does not open ({reason}): {advice}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: its tokenizer is no fast one (tokenizer.json): {advice}")
    # transformers keeps how it was loaded among what it saves.
    for name in ("local_files_only", "is_local", "trust_remote_code"):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def check_tokenizer(tokenizer: Any, architecture: Architecture) -> None:
    """Raises UserError if the tokenizer's ids, or its padding id, are not those of the model."""
    largest = max(tokenizer.get_vocab().values(), default=0)
    if largest >= architecture.vocab_size:
        raise UserError(
            f"The tokenizer has ids up to {largest}, the model embeds vocab_size = "
            f"{architecture.vocab_size}: use the tokenizer of this model."
        )
    if tokenizer.pad_token_id != architecture.pad_token_id:
        raise UserError(
            f"The tokenizer pads with id {tokenizer.pad_token_id}, the model with pad_token_id = "
            f"{architecture.pad_token_id}: use the tokenizer of this model."
        )


def _find_in_package(name: str) -> Path:
    package, _, inside = name.removeprefix(PACKAGE).partition("/")
    # Found without being imported: such a package may import torch.
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    if spec is None or not spec.submodule_search_locations:
        raise UserError(
            f"{name}: no Python package {package} is installed: "
            f"pip install --no-deps {package.replace('_', '-')}"
        )
    folder = Path(spec.submodule_search_locations[0]) / inside
    if ".." in Path(inside).parts or Path(inside).is_absolute() or not folder.is_dir():
        raise UserError(f"{name}: the package has no folder {inside!r}.")
    return folder


def _config(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`; dropout and initialiser fields are what transformers takes by default."""
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
