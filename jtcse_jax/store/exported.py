"""Exported folders: models of sentence-transformers, whose towers are ordinary Hugging Face
folders."""

import copy
import dataclasses
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jtcse_jax.architecture import Architecture
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import unstack
from jtcse_jax.store import hf_config, hf_files, hf_weights
from jtcse_jax.store.card import Card, read_card
from jtcse_jax.store.model_card import write_card
from jtcse_jax.store.saved_model import SavedModel, write_description
from jtcse_jax.store.serving import MODULES, POOLING_KEYS, SETTINGS, TRANSFORMER, Serving
from jtcse_jax.user_path import user_path

logger = logging.getLogger(__name__)

MODULE = "sum_of_towers.py"  # copied into the folder if there are several towers
# Arguments of a tokenizer's last call, which transformers keeps and would save.
INHERITED = ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of")


def export(model: SavedModel, folder: str | Path, card: Card | None = None) -> None:
    """Writes a model as a folder that other tools can open.

    For one tower, `folder` is a Hugging Face folder and, with its pooling, a model of
    sentence-transformers. Several towers are in `folder/tower_K`; in sentence-transformers the
    module `sum_of_towers.py`, copied into the folder, sums them. The folder appears complete or not
    at all. A killed process leaves `.NAME.partial` beside it, which the next export replaces.

    Args:
      model: the model; its weights are written as float32.
      folder: must be empty or not exist.
      card: the contents of the model card; by default what is known of the model.
    Raises:
      UserError: the folder is not empty or cannot be written, or the disk is full.
    """
    folder = user_path(folder).absolute()
    check_new(folder)
    card = card or read_card(model)
    partial = folder.with_name(f".{folder.name}.partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        _write(model, partial, card)
        partial.rename(folder)  # works onto an empty folder too
    except (OSError, UserError) as error:
        reason = str(error).replace(str(partial), str(folder))
        raise UserError(f"--output {folder}: nothing was written: {reason}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_new(folder: str | Path) -> None:
    """Raises UserError if `folder` exists and is not empty."""
    folder = user_path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"--output {folder} exists and is not empty; choose a new folder.")


def _fitting(tokenizer: Any, architecture: Architecture, serving_length: int) -> Any:
    """A copy of a transformers tokenizer that cuts where our encoder does, with `truncation=True`.

    It gives no token types to a model without them.
    """
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.model_max_length = serving_length
    if not architecture.has("type_vocab_size"):
        tokenizer.model_input_names = ["input_ids", "attention_mask"]
        tokenizer.init_kwargs["model_input_names"] = (
            tokenizer.model_input_names
        )  # or it is not saved
    for name in INHERITED:
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def _write(model: SavedModel, folder: Path, card: Card) -> None:
    towers = unstack(jax.tree.map(np.asarray, model.params))  # on the host, without compiling
    tokenizer = _fitting(model.tokenizer, model.bank.architecture, model.serving_length)
    names = ["."] if len(towers) == 1 else [f"tower_{tower}" for tower in range(len(towers))]
    for name, params in zip(names, towers, strict=True):
        hf_weights.write_tower(folder / name, model.bank.architecture, params, tokenizer=tokenizer)
        # safetensors writes files that only the owner can read.
        mode = (folder / name / hf_config.CONFIG).stat().st_mode
        (folder / name / hf_files.WEIGHTS).chmod(mode)
    if len(towers) == 1:
        modules = _one_tower(folder, model)
    else:
        modules = [{"path": "", "type": "sum_of_towers.SumOfTowers"}]
        shutil.copyfile(Path(__file__).with_name(MODULE), folder / MODULE)
    if card.normalize:
        path = f"{len(modules)}_Normalize"
        (folder / path).mkdir()
        modules.append({"path": path, "type": "sentence_transformers.models.Normalize"})
    numbered = [{"idx": number, "name": str(number)} for number in range(len(modules))]
    _write_json(
        folder / MODULES,
        [number | module for number, module in zip(numbered, modules, strict=True)],
    )
    _write_json(folder / SETTINGS, _settings(model.serving, card))
    if len(towers) > 1:
        description = {
            "towers": names,
            "pooling": model.bank.pooling,
            "serving_length": model.serving_length,
        }
        write_description(folder, description)
    write_card(folder, model, card)


def _one_tower(folder: Path, model: SavedModel) -> list[dict[str, Any]]:
    """Writes pooling and length; without them sentence-transformers would take the mean."""
    # The old module paths and keys, which old and new releases can read.
    pooling = {
        "word_embedding_dimension": model.bank.architecture.hidden_size,
        **{key: mode == model.bank.pooling for key, mode in POOLING_KEYS.items()},
        "include_prompt": model.serving.include_prompt,
    }
    (folder / "1_Pooling").mkdir()
    _write_json(folder / "1_Pooling" / "config.json", pooling)
    # The tokenizer itself writes lower case, if the model's folder asked for it.
    lengths = {"max_seq_length": model.serving_length, "do_lower_case": False}
    _write_json(folder / TRANSFORMER[0], lengths)
    return [
        {"path": "", "type": "sentence_transformers.models.Transformer"},
        {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    ]


def _settings(serving: Serving, card: Card) -> dict[str, Any]:
    """The folder's own settings, with the prompts of the card, which the user may have given."""
    default = serving.default_prompt_name
    if (
        default is not None
        and default not in dataclasses.replace(serving, prompts=card.prompts).all_prompts
    ):
        logger.warning("The default prompt %r is dropped: it is not among the prompts.", default)
        default = None
    settings = {
        "prompts": card.prompts,
        "default_prompt_name": default,
        "similarity_fn_name": serving.similarity,
    }
    width = serving.truncate_dim
    return settings if width is None else settings | {"truncate_dim": width}


def _write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
