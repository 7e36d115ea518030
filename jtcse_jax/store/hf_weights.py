"""Reads and writes the weights of encoders in Hugging Face folders.

Missing, extra and misshaped tensors are errors, and one message lists them all; the table of names
is in the family's file.
"""

import json
import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax import Array
from safetensors import SafetensorError
from safetensors.numpy import save_file

from jtcse_jax.architecture import Architecture
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Params
from jtcse_jax.store import hf_config, hf_names, hf_tokenizer
from jtcse_jax.store.hf_files import WEIGHTS, read_tensors

logger = logging.getLogger(__name__)


def read_tower(
    folder: str | Path, architecture: Architecture, *, key: Array | None = None
) -> Params:
    """One tower's parameters from `model.safetensors`, whole or sharded: numpy float32 arrays.

    float16 and bfloat16 are widened. A checkpoint without a pooler gets a new one, normal(0, 0.02)
    drawn from `key` (by default a fixed one), with a warning, as does a family that has none; one
    without token types gets zeros.
    Raises UserError for a damaged file, and for tensors that do not fit the architecture.
    """
    folder = Path(folder)
    names, shapes = hf_names.names_of(architecture), hf_names.tensor_shapes(architecture)
    tensors, problems = hf_names.encoder_tensors(read_tensors(folder), names)
    token_types = hf_names.their_name("embeddings.token_type.embedding", names)
    if token_types in shapes and token_types not in tensors:
        tensors[token_types] = np.zeros(shapes[token_types], np.float32)
    pooler = {hf_names.their_name(f"pooler.{leaf}", names) for leaf in ("kernel", "bias")}
    has_pooler = not pooler.isdisjoint(tensors)
    ours = {name: shape for name, shape in shapes.items() if has_pooler or name not in pooler}
    problems += hf_names.misfits(tensors, ours)
    if problems:
        raise UserError(
            f"{folder}: {len(problems)} tensors do not fit the encoder of {hf_config.CONFIG} (do "
            f"both belong to the same model?): {'; '.join(problems)}."
        )
    params = hf_names.to_tower(tensors, architecture)
    # Only now, when the config's sizes are known to be those of the weights.
    if not has_pooler:
        logger.warning("%s has no pooler: a new one is drawn, normal(0, 0.02).", folder)
        key = jax.random.key(0) if key is None else key
        size = architecture.hidden_size
        kernel = 0.02 * np.asarray(jax.random.normal(key, (size, size))).T
        params["pooler"] = {
            "kernel": np.ascontiguousarray(kernel),
            "bias": np.zeros(size, np.float32),
        }
    return params


def read_mlm_head(folder: str | Path, architecture: Architecture) -> Params | None:
    """The head of masked language modelling beside a tower, as `mlm_head.init` without the axis K.

    None if the folder has none, or only parts of one. Errors as in `read_tower`.
    """
    tensors = read_tensors(Path(folder))
    return hf_names.to_mlm_head(tensors, architecture)


def write_tower(
    folder: str | Path, architecture: Architecture, params: Params, tokenizer: Any = None
) -> None:
    """Writes one tower as a folder that `transformers.AutoModel.from_pretrained` opens.

    The pooler is left out if the family has none in transformers.

    Args:
      folder: created if absent; files of the same names are replaced.
      architecture: shape of the encoder.
      params: as from `read_tower` or `towers.unstack`; written as float32.
      tokenizer: a transformers tokenizer, saved beside the weights.

    Raises UserError if the parameters do not fit or the folder cannot be written.
    """
    folder = Path(folder)
    tensors = hf_names.to_tensors(params, architecture)
    problems = hf_names.misfits(tensors, hf_names.tensor_shapes(architecture))
    if problems:
        raise UserError(f"{folder}: parameters do not fit: {'; '.join(problems)}.")
    tensors = hf_names.fused(tensors, hf_names.names_of(architecture))
    try:
        folder.mkdir(parents=True, exist_ok=True)
        text = json.dumps(hf_config.to_config(architecture), indent=2) + "\n"
        (folder / hf_config.CONFIG).write_text(text, encoding="utf-8")
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        if tokenizer is not None:
            hf_tokenizer.save_tokenizer(tokenizer, folder)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: cannot be written: {error}.") from error
