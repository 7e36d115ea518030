"""How a run starts: its workdir, the model (from scratch, from trained towers or resumed), and
the teacher."""

import dataclasses
import json
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax.sharding import Mesh

from jtcse_jax import saved_model, sharding
from jtcse_jax.config import SCRATCH, Architecture, Config, ModelConfig
from jtcse_jax.config_file import to_json
from jtcse_jax.data.sources import Source
from jtcse_jax.data.vocabulary import train_tokenizer
from jtcse_jax.ensemble import load_members
from jtcse_jax.errors import UserError
from jtcse_jax.models import hf_weights
from jtcse_jax.models.teacher import Teacher
from jtcse_jax.models.towers import Bank, Params, stack, unstack
from jtcse_jax.saved_model import SavedModel

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
    mlm_head: Params | None = None  #: likewise, where every tower's folder brings one


def open_workdir(workdir: Path, config: Config, *, resuming: bool, write: bool) -> None:
    """Makes the workdir and writes the config into it.

    Raises UserError where it belongs to a run with another config.
    """
    path = workdir / CONFIG
    if resuming and path.is_file():
        # A field that is younger than the run had its default value then.
        defaults = _flat(json.loads(to_json(Config())))
        before = defaults | _flat(json.loads(path.read_text(encoding="utf-8")))
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
        if config.objective.name == "mlm":
            start = start._replace(mlm_head=_mlm_heads(config.model.towers, start.architecture))
    architecture = start.architecture
    if config.data.max_len > architecture.longest_sentence:
        raise UserError(
            f"data.max_len = {config.data.max_len} is above the {architecture.longest_sentence} "
            "positions of the model."
        )
    hf_weights.check_tokenizer(start.tokenizer, architecture)
    if config.objective.name == "jtcse":
        config.model.cross.interval(architecture.num_layers)
    return start


def load_teacher(config: Config, student: Bank, mesh: Mesh) -> tuple[Teacher | None, list[Any]]:
    """The teacher that a config names, a copy on each device, and its banks' tokenizers.

    Its banks read sentences cut to `data.max_len`, as the student does. Raises UserError for a
    teacher that is not there, reads shorter sentences, or has another width than the student
    where their vectors are compared.
    """
    if config.objective.teacher is None:
        return None, []
    members = load_members(config.objective.teacher)
    width = student.architecture.hidden_size
    banks, params = [], []
    for weight, model in members:
        architecture = model.bank.architecture
        log.info("teacher: %g * %s", weight, model.source)
        if config.data.max_len > architecture.longest_sentence:
            raise UserError(
                f"objective.teacher: {model.source} reads {architecture.longest_sentence} tokens, "
                f"less than data.max_len = {config.data.max_len}: lower data.max_len."
            )
        if config.objective.distillation == "contrastive" and architecture.hidden_size != width:
            raise UserError(
                f"objective.teacher: {model.source} is {architecture.hidden_size} wide and the "
                f"student {width}: use objective.distillation = listwise."
            )
        banks.append(dataclasses.replace(model.bank, compute_dtype=student.compute_dtype))
        everywhere = jax.tree.map(lambda _: sharding.replicated(mesh), model.params)
        params.append(sharding.place(model.params, everywhere))
    weights = tuple(member.weight for member in members)
    teacher = Teacher(tuple(banks), weights, tuple(params))
    return teacher, [member.model.tokenizer for member in members]


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
    for number, name in enumerate(config.towers):
        model, tower = _load_tower(name, number, config.pooling)
        loaded.append((model, tower))
        log.info("a tower starts from %s", model.source)
    first = loaded[0][0]
    for name, (model, _) in zip(config.towers, loaded, strict=True):
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
    towers = stack([tower for _, tower in loaded])
    return Start(first.bank.architecture, tokenizer, towers)


def _mlm_heads(names: tuple[str, ...], architecture: Architecture) -> Params | None:
    """The towers' heads [K, ...], or None where one has none: workdirs and exports do not."""
    heads = []
    for name in names:
        folder = hf_weights.find_folder(name.partition("#")[0])
        plain = (folder / hf_weights.CONFIG).is_file()
        heads.append(hf_weights.read_mlm_head(folder, architecture) if plain else None)
    if None in heads:
        log.info("the head of masked language modelling starts from random weights")
        return None
    return stack(heads)


def _load_tower(name: str, seed: int, pooling: str) -> tuple[SavedModel, Params]:
    """A model and one tower of it: `NAME#K` is tower K, from 0; a plain name has one tower.

    The seed is that of a missing pooler: towers from the same weights must not share one.
    """
    folder, mark, number = name.rpartition("#")
    picked = bool(mark) and number.isdigit()
    model = saved_model.load(folder if picked else name, pooling=pooling, seed=seed)
    towers = unstack(model.params)
    if not picked and len(towers) > 1:
        raise UserError(
            f"model.towers: {name} has {len(towers)} towers: name one of them, {name}#0."
        )
    if picked and int(number) >= len(towers):
        raise UserError(f"model.towers: {folder} has {len(towers)} towers, numbered from 0.")
    return model, towers[int(number) if picked else 0]


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat
