"""The models of a run: its towers (from scratch, trained, or resumed), and its teacher."""

import dataclasses
import hashlib
import logging
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import Mesh

from jtcse_jax.architecture import Architecture, Pooling
from jtcse_jax.config import SCRATCH, Config, ModelConfig
from jtcse_jax.data.sources import Source
from jtcse_jax.data.vocabulary import train_tokenizer
from jtcse_jax.errors import UserError
from jtcse_jax.models.teacher import Teacher
from jtcse_jax.models.towers import Bank, Params, stack
from jtcse_jax.runtime import sharding
from jtcse_jax.store import hf_config, hf_files, hf_tokenizer, hf_weights, saved_model
from jtcse_jax.store.ensemble import fingerprint, load_members
from jtcse_jax.store.saved_model import SavedModel
from jtcse_jax.store.serving import Serving, read_serving

POOLING = "cls"  # of towers whose folder names no pooling: SimCSE and JTCSE pool [CLS]
log = logging.getLogger(__name__)


class Start(NamedTuple):
    """The model that this process starts training from."""

    architecture: Architecture
    tokenizer: Any
    pooling: Pooling  #: the config's, or else the start model's
    serving_length: int  #: likewise, in tokens
    towers: Params | None  #: leaves [K, ...] on the host; None if a checkpoint has them
    mlm_head: Params | None = None  #: likewise, if every tower's folder has one
    serving: Serving = Serving()  #: prompts and scaling, those of the start model

    def fingerprint(self) -> str:
        """sha256 (hex) of pooling, length, tokenizer and the weights on the host."""
        digest = hashlib.sha256(f"{self.pooling} {self.serving_length} ".encode())
        digest.update(self.tokenizer.backend_tokenizer.to_str().encode())
        for leaf in jax.tree.leaves((self.towers, self.mlm_head)):
            digest.update(np.ascontiguousarray(leaf).data)
        return digest.hexdigest()


def start_model(config: Config, source: Source, workdir: Path, *, resuming: bool) -> Start:
    """Returns the model that a run starts with. The first match decides:

    1. the workdir's model, if it has a checkpoint;
    2. random weights, with a tokenizer trained on the text unless the config names one;
    3. trained towers, each from its own folder.

    Pooling and serving length are the config's, or else that model's; prompts and scaling to length
    1 are those of that model, of several the first. Raises UserError if the
    towers do not fit each other, the tokenizer, `data.max_len` or `model.serving_length`.
    """
    if resuming:
        bank, tokenizer = saved_model.read_workdir_model(workdir)
        length = saved_model.find_serving_length(
            workdir, tokenizer, bank.architecture.longest_sentence
        )
        settings = read_serving(workdir)
        start = Start(bank.architecture, tokenizer, bank.pooling, length, None, serving=settings)
    elif SCRATCH in config.model.towers:
        start = _from_scratch(config, source)
    else:
        start = _from_towers(config.model, config.seed)
        if not config.objective.traits.embeds:
            start = start._replace(mlm_head=_mlm_heads(config.model.towers, start.architecture))
    start = start._replace(
        pooling=config.model.pooling or start.pooling,
        serving_length=config.model.serving_length or start.serving_length,
    )
    architecture = start.architecture
    for name, length in (
        ("data.max_len", config.data.max_len),
        ("model.serving_length", start.serving_length),
    ):
        if length > architecture.longest_sentence:
            raise UserError(
                f"{name} = {length} is above the {architecture.longest_sentence} positions of the "
                "model."
            )
    hf_tokenizer.check_tokenizer(start.tokenizer, architecture)
    if config.objective.traits.crosses:
        config.model.cross.interval(architecture.num_layers)
    return start


def load_teacher(
    config: Config, student: Bank, mesh: Mesh
) -> tuple[Teacher | None, list[Any], str]:
    """Returns the teacher of a config, with a copy on each device; the tokenizers of its banks; and
    its fingerprint. A config without a teacher has (None, [], "").

    Its banks read sentences cut to `data.max_len`, as the student does. Raises UserError if the
    teacher does not exist, reads shorter sentences, or has another width than the student although
    their vectors are compared.
    """
    if config.objective.teacher is None:
        return None, [], ""
    try:
        members = load_members(config.objective.teacher)
    except UserError as error:
        raise UserError(
            f"objective.teacher: {error} (To set its pooling and max_len, write an ensemble of one "
            "member.)"
        ) from error
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
                f"objective.teacher: {model.source} is {architecture.hidden_size} wide, but the "
                f"student {width}: use objective.distillation = listwise."
            )
        banks.append(dataclasses.replace(model.bank, compute_dtype=student.compute_dtype))
        everywhere = jax.tree.map(lambda _: sharding.replicated(mesh), model.params)
        params.append(sharding.place(model.params, everywhere))
    weights = tuple(member.weight for member in members)
    teacher = Teacher(tuple(banks), weights, tuple(params))
    return teacher, [member.model.tokenizer for member in members], fingerprint(members)


def _from_scratch(config: Config, source: Source) -> Start:
    architecture = config.model.scratch
    if config.model.tokenizer:
        tokenizer = hf_tokenizer.find_tokenizer(config.model.tokenizer)
        _check_scratch_tokenizer(tokenizer, config.model)
    else:
        tokenizer = train_tokenizer(
            source, architecture.vocab_size, lowercase=config.model.lowercase
        )
        log.info("a tokenizer of %s entries is trained on the text", f"{len(tokenizer):,}")
    architecture = dataclasses.replace(architecture, pad_token_id=tokenizer.pad_token_id)
    towers = Bank(architecture, len(config.model.towers)).init(config.seed)
    return Start(architecture, tokenizer, POOLING, architecture.longest_sentence, towers)


def _check_scratch_tokenizer(tokenizer: Any, config: ModelConfig) -> None:
    needed = max(tokenizer.get_vocab().values()) + 1
    if needed > config.scratch.vocab_size:
        raise UserError(
            f"model.scratch.vocab_size = {config.scratch.vocab_size}: the tokenizer "
            f"{config.tokenizer} needs {needed}."
        )
    if tokenizer.pad_token_id is None:
        raise UserError(
            f"model.tokenizer = {config.tokenizer} has no padding token; name another, or none "
            "to train one on the text."
        )


def _from_towers(config: ModelConfig, seed: int) -> Start:
    poolings = {
        name: saved_model.read_description(_folder(name)).get("pooling") for name in config.towers
    }
    loaded = []
    for number, name in enumerate(config.towers):
        # Towers from the same weights must not get the same random pooler.
        model = saved_model.load(
            name, pooling=config.pooling or poolings[name] or POOLING, seed=seed + number
        )
        if model.bank.num_towers > 1:
            raise UserError(
                f"model.towers: {name} has {model.bank.num_towers} towers: name one of them, "
                f"{name}#0."
            )
        loaded.append(model)
        log.info("a tower starts from %s", model.source)
    first = loaded[0]
    for name, model in zip(config.towers, loaded, strict=True):
        pooling = poolings[name]
        if config.pooling and pooling not in (None, config.pooling):
            log.info(
                "model.pooling = %s, but %s was made for %s pooling", config.pooling, name, pooling
            )
        _check_fit(config.towers[0], first, name, model)
    tokenizer = first.tokenizer
    if config.tokenizer:
        tokenizer = hf_tokenizer.find_tokenizer(config.tokenizer)
    towers = stack([jax.tree.map(lambda leaf: leaf[0], model.params) for model in loaded])
    return Start(
        first.bank.architecture,
        tokenizer,
        first.bank.pooling,
        first.serving_length,
        towers,
        serving=first.serving,
    )


def _check_fit(first_name: str, first: SavedModel, name: str, model: SavedModel) -> None:
    """Raises UserError if two towers cannot be in one bank."""
    ours, others = (
        dataclasses.asdict(each.bank.architecture) | {"pooling": each.bank.pooling}
        for each in (first, model)
    )
    differing = [
        f"{field} ({value} and {others[field]})"
        for field, value in ours.items()
        if value != others[field]
    ]
    if model.tokenizer.get_vocab() != first.tokenizer.get_vocab():
        differing.append("vocabulary")
    if differing:
        raise UserError(
            f"model.towers: {first_name} and {name} differ in {', '.join(differing)}: all towers "
            "of a bank need one shape, vocabulary and pooling; model.pooling sets the pooling."
        )


def _mlm_heads(names: tuple[str, ...], architecture: Architecture) -> Params | None:
    """The towers' heads [K, ...]; None if a tower has none, as in workdirs and exports."""
    heads = []
    for name in names:
        folder = _folder(name)
        plain = (folder / hf_config.CONFIG).is_file()
        heads.append(hf_weights.read_mlm_head(folder, architecture) if plain else None)
    if None in heads:
        log.info("the head of masked language modelling starts from random weights")
        return None
    return stack(heads)


def _folder(name: str) -> Path:
    return hf_files.find_folder(saved_model.split_name(name)[0])
