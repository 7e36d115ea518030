"""How a run starts: its workdir, and the model from scratch, from trained towers or resumed."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax

from jtcse_jax import saved_model
from jtcse_jax.config import SCRATCH, Architecture, Config, ModelConfig, to_json
from jtcse_jax.data.sources import Source
from jtcse_jax.data.vocabulary import train_tokenizer
from jtcse_jax.errors import UserError
from jtcse_jax.models import hf_weights
from jtcse_jax.models.towers import Bank, Params, stack

CONFIG = "train_config.json"
# What may differ when a run goes on; any other change would make it another run.
CHANGEABLE = {
    *("workdir", "epochs", "max_steps", "eval_every", "save_every", "log_every", "keep"),
    *("tower_devices", "deterministic", "data.cache_dir"),
}

log = logging.getLogger(__name__)


class Start(NamedTuple):
    """The model before the first step of this process."""

    architecture: Architecture
    tokenizer: Any
    towers: Params | None  #: leaves [K, ...] on the host; None where a checkpoint has them


def open_workdir(workdir: Path, config: Config, *, resuming: bool, write: bool) -> None:
    """Makes the workdir and writes the config into it.

    Raises UserError where it belongs to a run with another config.
    """
    path = workdir / CONFIG
    if resuming and path.is_file():
        before = _flat(json.loads(path.read_text(encoding="utf-8")))
        now = _flat(json.loads(to_json(config)))
        changed = [
            f"{name} (was {before.get(name)}, now {now.get(name)})"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and name not in CHANGEABLE
        ]
        if changed:
            raise UserError(
                f"{workdir} holds a run with another config: {'; '.join(changed)}. Name a new "
                "--workdir, or go back to the old values to resume."
            )
    if write:
        try:
            workdir.mkdir(parents=True, exist_ok=True)
            path.write_text(to_json(config) + "\n", encoding="utf-8")
        except OSError as error:
            raise UserError(f"workdir {workdir} cannot be written: {error.strerror}.") from error


def start_model(config: Config, source: Source, workdir: Path, *, resuming: bool) -> Start:
    """The model a run starts with, in this order of choice:

    1. that of the workdir, if it has a checkpoint;
    2. random weights, with a tokenizer trained on the text unless the config names one;
    3. trained towers, each from its own folder.

    Raises UserError for towers that do not fit each other, the tokenizer or `data.max_len`.
    """
    if resuming:
        bank, tokenizer = saved_model.read_workdir_model(workdir)
        start = Start(bank.architecture, tokenizer, None)
    elif SCRATCH in config.model.towers:
        start = _from_scratch(config, source)
    else:
        start = _from_towers(config.model)
    architecture = start.architecture
    if config.data.max_len > architecture.longest_sentence:
        raise UserError(
            f"data.max_len = {config.data.max_len} is above the {architecture.longest_sentence} "
            "positions of the model."
        )
    hf_weights.check_tokenizer(start.tokenizer, architecture)
    config.model.cross.interval(architecture.num_layers)
    return start


def _from_scratch(config: Config, source: Source) -> Start:
    architecture = config.model.scratch
    if config.model.tokenizer:
        tokenizer = hf_weights.load_tokenizer(hf_weights.find_folder(config.model.tokenizer))
        _check_scratch_tokenizer(tokenizer, config.model)
    else:
        tokenizer = train_tokenizer(source, architecture.vocab_size)
    architecture = dataclasses.replace(architecture, pad_token_id=tokenizer.pad_token_id)
    bank = Bank.from_config(config.model, architecture)
    return Start(architecture, tokenizer, bank.init(config.seed))


def _check_scratch_tokenizer(tokenizer: Any, config: ModelConfig) -> None:
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > config.scratch.vocab_size:
        raise UserError(
            f"model.scratch.vocab_size = {config.scratch.vocab_size}: the tokenizer "
            f"{config.tokenizer} needs {needed}."
        )
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"model.tokenizer = {config.tokenizer}: it has no padding token; name another, or none "
            "to train one on the text."
        )


def _from_towers(config: ModelConfig) -> Start:
    loaded = []
    for name in config.towers:
        model = saved_model.load(name, pooling=config.pooling)
        if model.bank.num_towers != 1:
            raise UserError(
                f"model.towers: {name} has {model.bank.num_towers} towers: export it and name "
                "one of its tower_K folders."
            )
        loaded.append(model)
        log.info("a tower starts from %s", model.source)
    first = loaded[0]
    for name, model in zip(config.towers, loaded, strict=True):
        differing = [
            f"{field.name} {getattr(first.bank.architecture, field.name)} and "
            f"{getattr(model.bank.architecture, field.name)}"
            for field in dataclasses.fields(Architecture)
            if getattr(first.bank.architecture, field.name)
            != getattr(model.bank.architecture, field.name)
        ]
        if differing:
            raise UserError(
                f"model.towers: {config.towers[0]} and {name} differ in {', '.join(differing)}: "
                "towers of one bank have one shape."
            )
        if model.tokenizer.get_vocab() != first.tokenizer.get_vocab():
            raise UserError(
                f"model.towers: {config.towers[0]} and {name} have different vocabularies: "
                "towers of one bank read the same tokens."
            )
    tokenizer = first.tokenizer
    if config.tokenizer:
        tokenizer = hf_weights.load_tokenizer(hf_weights.find_folder(config.tokenizer))
    towers = stack([jax.tree.map(lambda leaf: leaf[0], model.params) for model in loaded])
    return Start(first.bank.architecture, tokenizer, towers)


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
