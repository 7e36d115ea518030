"""Reads a bank from disk: from workdirs, exported folders and Hugging Face folders.

A small `jtcse.json` beside the weights stores what the weights do not contain (pooling, serving
length), so that no reader has to guess. A workdir has its weights in `checkpoints/`. An exported
folder, written by `exported.py`, has one Hugging Face folder per tower.
"""

import dataclasses
import json
import logging
import os
import reprlib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import jax

from jtcse_jax.architecture import POOLINGS, Architecture, Pooling
from jtcse_jax.errors import UserError
from jtcse_jax.models.towers import Bank, Params, stack
from jtcse_jax.pipeline_config import MODEL
from jtcse_jax.runtime.files import read_json
from jtcse_jax.store import hf_config, hf_files, hf_tokenizer, hf_weights, serving
from jtcse_jax.store.checkpoint import Checkpoints
from jtcse_jax.store.hf_files import lies_in
from jtcse_jax.store.serving import Serving
from jtcse_jax.store.workdir import CHECKPOINTS, DESCRIPTION, TOKENIZER

MOST_TOWERS = 1024
ADAPTER = "adapter_config.json"  # of weights to be added to others, which transformers would do

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SavedModel:
    """A bank, its parameters, and what is needed to feed it."""

    bank: Bank
    params: Params  #: leaves [K, ...] float32
    tokenizer: Any  #: a fast transformers tokenizer
    serving_length: int  #: longest sentence that it reads, in tokens
    source: str  #: the model's origin, as text for a log line
    folder: Path | None = None  #: folder of its files; None if it was made in memory
    step: int | None = None  #: step of the workdir it was read from
    serving: Serving = field(default_factory=Serving)  #: prompts and scaling of its folder


def load(
    name: str | Path,
    *,
    step: int | None = None,
    pooling: Pooling | None = None,
    max_len: int | None = None,
    seed: int = 0,
) -> SavedModel:
    """Loads the model of a workdir, an exported folder, or a Hugging Face folder or hub name.

    Args:
      name: folder or hub name; NAME#K is only its tower K, from 0.
      step: step of a workdir; by default the best undamaged one by dev score, or the newest if no
        step has a score.
      pooling: overrides that of the folder. Needed if neither a `jtcse.json` nor a
        sentence-transformers folder names it.
      max_len: overrides the serving length (see `find_serving_length`).
      seed: seed for a random pooler, if the weights have none. Towers that start from the same
        weights need different seeds, or they get the same pooler.
    Raises:
      UserError: there is no such model or tower, the pooling is unknown, a step is given for
        something without steps, `max_len` is above the model's positions, or the folder needs
        something that is not supported.
    """
    name, tower = split_name(str(name))
    folder = hf_files.find_folder(name)
    files = (DESCRIPTION, hf_config.CONFIG, serving.MODULES)
    known = any((folder / file).is_file() for file in files)
    if not known and (folder / MODEL).is_dir():
        raise UserError(f"{name} is a pipeline's workdir; its model is {folder / MODEL}.")
    if (folder / CHECKPOINTS).is_dir():
        bank, tokenizer = read_workdir_model(folder)
        architecture = bank.architecture
        params, step, source = _read_checkpoint(folder, bank, step)
    elif step is not None:
        raise UserError(f"{name}: --step {step} needs a workdir with checkpoints.")
    else:
        towers = _tower_folders(folder)
        architecture = hf_config.read_architecture(towers[0])
        params, tokenizer, source = *_read_towers(towers, architecture, folder, seed), str(name)
    pooling = _checked_pooling(pooling or read_description(folder).get("pooling"), name)
    longest = architecture.longest_sentence
    if max_len is None:
        max_len = find_serving_length(folder, tokenizer, longest)
    elif type(max_len) is not int or not 1 <= max_len <= longest:
        raise UserError(
            f"{name}: max_len = {reprlib.repr(max_len)}: choose from 1 to {longest}, the positions "
            "of the model."
        )
    hf_tokenizer.check_tokenizer(tokenizer, architecture)
    if tower is not None:
        params, source = _pick(params, tower, name), f"{source}, tower {tower}"
    bank = Bank(architecture, len(jax.tree.leaves(params)[0]), pooling=pooling)
    settings = serving.read_serving(folder)
    return SavedModel(bank, params, tokenizer, max_len, source, folder, step, settings)


def _checked_pooling(pooling: Any, name: str) -> Pooling:
    if pooling is None:
        raise UserError(
            f"{name}: no file there names the pooling of sentence vectors: give --pooling cls or "
            "--pooling mean (SimCSE-like models: cls)."
        )
    if pooling not in POOLINGS:
        found = reprlib.repr(pooling)
        raise UserError(f"{name}: pooling = {found}: choose one of {', '.join(POOLINGS)}.")
    return pooling


def split_name(name: str) -> tuple[str, int | None]:
    """Splits a model's name into folder and tower: `runs/jtcse#0` is ("runs/jtcse", 0)."""
    model, _, number = name.rpartition("#")
    is_number = number.isdecimal() and len(number) < 10
    if model and is_number and not os.path.exists(os.path.expanduser(name)):
        return model, int(number)
    return name, None


def read_description(folder: Path) -> dict[str, Any]:
    """What a folder tells of its towers, pooling and serving length; {} if nothing.

    It is that of sentence-transformers' files, or else of a `jtcse.json`, which a workdir and a sum
    of towers have.
    """
    description = serving.read_modules(folder)
    if description is not None:
        return description
    path = folder / DESCRIPTION
    return read_json(path) if path.is_file() else {}


def find_serving_length(folder: Path, tokenizer: Any, longest: int) -> int:
    """The longest sentence, in tokens, that the model in a folder reads; at most `longest`.

    It is the length in the folder's description, else the limit of its tokenizer, else `longest`.
    Warns if the description has more than `longest`. Raises UserError if it has anything but a
    whole number above 0.
    """
    length = read_description(folder).get("serving_length")
    if length is None:
        limit = tokenizer.model_max_length  # 1e30 if the tokenizer has no limit
        length = limit if type(limit) is int and limit > 0 else longest
    if type(length) is not int or length < 1:
        found = reprlib.repr(length)
        raise UserError(f"{folder}: serving_length = {found}: write a whole number above 0.")
    if length > longest and read_description(folder).get("serving_length"):
        logger.warning(
            "%s: its longest sentence, %s tokens, is above the %s positions of the model, which "
            "are used.",
            *(folder, length, longest),
        )
    return min(length, longest)


def describe_workdir(
    workdir: Path, bank: Bank, serving_length: int, settings: Serving | None = None
) -> None:
    """Writes the `jtcse.json` of a workdir; OSError if that fails."""
    description = {
        "architecture": dataclasses.asdict(bank.architecture),
        "num_towers": bank.num_towers,
        "pooling": bank.pooling,
        "serving_length": serving_length,
        "serving": serving.workdir_settings(settings or Serving()),
    }
    write_description(workdir, description)


def read_workdir_model(workdir: Path) -> tuple[Bank, Any]:
    """The shape of a workdir's bank (without weights), and its tokenizer."""
    path, description = workdir / DESCRIPTION, read_description(workdir)
    try:
        shape, num_towers = dict(description["architecture"]), description["num_towers"]
        sizes = {name: value for name, value in shape.items() if name != "family"}
        hf_config.check_shape(path, sizes)
        architecture = Architecture(**shape)
        bank = Bank(architecture, num_towers, pooling=description["pooling"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: incomplete ({error}): train again.") from error
    if type(num_towers) is not int or not 1 <= num_towers <= MOST_TOWERS:
        found = reprlib.repr(num_towers)
        raise UserError(f"{path}: num_towers = {found}: must be from 1 to {MOST_TOWERS}.")
    return bank, hf_tokenizer.load_tokenizer(workdir / TOKENIZER)


def write_description(folder: Path, description: dict[str, Any]) -> None:
    """Writes `jtcse.json` into the folder, which is created if it does not exist."""
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / f".{DESCRIPTION}.new"
    temporary.write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")
    temporary.replace(folder / DESCRIPTION)


def _read_checkpoint(workdir: Path, bank: Bank, step: int | None) -> tuple[Params, int, str]:
    with Checkpoints(workdir / CHECKPOINTS, read_only=True) as checkpoints:
        in_order = checkpoints.best_first()
        if step is None and not in_order:
            raise UserError(f"{workdir}: no checkpoint yet; train first.")
        taken, state = checkpoints.restore(step, params=bank.abstract(), prefer="best")
        scored = checkpoints.score(taken) is not None
    if step is not None:
        why = "requested"
    else:
        undamaged = "" if taken == in_order[0] else " undamaged"
        why = f"best{undamaged} by dev score" if scored else f"newest{undamaged}, no dev score"
    return state["params"], taken, f"{workdir}, step {taken} ({why})"


def _read_towers(
    towers: list[Path], architecture: Architecture, folder: Path, seed: int
) -> tuple[Params, Any]:
    """The parameters of the towers of a folder, and their tokenizer."""
    params = [
        hf_weights.read_tower(tower, architecture, key=jax.random.key(seed + number))
        for number, tower in enumerate(towers)
    ]
    tokenizer = hf_tokenizer.load_tokenizer(towers[0])
    if read_description(folder).get("lowercase"):
        tokenizer = serving.lowercased(tokenizer)
    return stack(params), tokenizer


def _tower_folders(folder: Path) -> list[Path]:
    """The folders of a folder's towers; all must lie inside it and have weights of their own."""
    names = read_description(folder).get("towers", ["."])
    if not isinstance(names, list) or not names:
        raise UserError(f"{folder / DESCRIPTION}: towers = {reprlib.repr(names)}: must be a list.")
    if len(names) > MOST_TOWERS or len(set(map(str, names))) < len(names):
        raise UserError(
            f"{folder / DESCRIPTION}: towers = {reprlib.repr(names)}: name each once, and at most "
            f"{MOST_TOWERS}."
        )
    for name in names:
        if not isinstance(name, str) or not lies_in(folder / name, folder):
            raise UserError(
                f"{folder / DESCRIPTION}: tower {reprlib.repr(name)} is not a folder inside it."
            )
    towers = [folder / name for name in names]
    for tower in towers:
        if (tower / ADAPTER).is_file():
            raise UserError(
                f"{tower / ADAPTER}: adapters are not supported: merge it into the model's weights."
            )
    return towers


def _pick(params: Params, tower: int, name: str) -> Params:
    count = len(jax.tree.leaves(params)[0])
    if tower >= count:
        raise UserError(f"{name}#{tower}: {name} has {count} tower(s), numbered from 0.")
    return jax.tree.map(lambda leaf: leaf[tower : tower + 1], params)
