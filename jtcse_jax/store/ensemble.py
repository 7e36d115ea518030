"""Ensembles: weighted sums of encoders, each with its own tokenizer, pooling and serving length.

A JSON file describes an ensemble; in a folder it is named `ensemble.json`:

    {"members": [{"model": "runs/jtcse", "weight": 0.3},
                 {"model": "org/name", "weight": 0.7, "pooling": "cls", "max_len": 64}]}

A `model` is a path (relative to the file's folder if it exists there), a hub name, or another
description. `pooling`, `max_len` and `step` are optional and have the meaning they have in
`saved_model.load`. Since a description may come from someone else, its paths are restricted: they
must lie below the file's folder or, as plain relative paths, below the working directory.

Where a model is named, `0.3 * runs/jtcse + 0.7 * org/name` is the same ensemble without a file; a
weight of 1 can be left out.
"""

import dataclasses
import hashlib
import json
import os
import reprlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from jtcse_jax.architecture import Pooling
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.files import read_json
from jtcse_jax.store import saved_model
from jtcse_jax.store.hf_files import lies_in
from jtcse_jax.store.saved_model import SavedModel
from jtcse_jax.user_path import user_path

DESCRIPTION = "ensemble.json"
MOST_MEMBERS, MOST_WEIGHT = 64, 1e6
OPTIONS = {"pooling": str, "max_len": int, "step": int}


class Member(NamedTuple):
    """One encoder of an ensemble."""

    weight: float  #: factor of its raw vectors; above 0
    model: SavedModel


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """The arguments of every command that reads a model."""

    model: str
    """A workdir, an exported folder, a Hugging Face folder or hub name (BERT, also multilingual,
    RoBERTa, XLM-R, CamemBERT, DistilBERT, MPNet, ELECTRA, ModernBERT), `package:NAME/FOLDER` (a
    folder of an installed Python package), a weighted sum of models (`"0.3 * runs/a + 0.7 *
    runs/b"`), or the JSON file of one."""
    step: int | None = None
    """Step of a workdir; by default the best by dev score, or the newest if no step has one."""
    pooling: Pooling | None = None
    """Pooling; needed if the model's folder does not name it."""
    max_len: int | None = None
    """Longest sentence in tokens; by default the model's own serving length."""

    def load_members(self) -> tuple[Member, ...]:
        """Loads the model that the arguments name; errors as the function `load_members`."""
        return load_members(self.model, step=self.step, pooling=self.pooling, max_len=self.max_len)


@dataclass(frozen=True, kw_only=True)
class EncoderArguments(ModelArguments):
    """The arguments of every command that encodes with a model."""

    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of matrix products; it may differ from that in training. The vectors are float32."""

    def load_members(self) -> tuple[Member, ...]:
        """Loads the model that the arguments name; errors as the function `load_members`."""
        return computed_in(self.compute_dtype, super().load_members())


@dataclass(frozen=True, kw_only=True)
class PromptArguments(EncoderArguments):
    """The arguments of every command that encodes all its sentences in the same way."""

    prompt: str | None = None
    """Text put before each sentence; by default the default prompt of the model's folder."""
    prompt_name: str | None = None
    """Name of a prompt of the model's folder, which is put before each sentence."""

    def load_members(self) -> tuple[Member, ...]:
        """Loads the model that the arguments name; errors as `load_members` and `prompted`."""
        return prompted(super().load_members(), self.prompt, self.prompt_name)


def load_members(
    name: str | Path,
    *,
    step: int | None = None,
    pooling: Pooling | None = None,
    max_len: int | None = None,
) -> tuple[Member, ...]:
    """Loads the members of an ensemble; any other model is one member of weight 1.

    A member that is itself an ensemble is replaced by its members, with multiplied weights.

    Args:
      name: a description (a .json file or a folder with `ensemble.json`), a sum of names
        (`0.3 * A + 0.7 * B`), or any name that `saved_model.load` takes.
      step: as in `saved_model.load`; for an ensemble, write it into the description.
      pooling: likewise.
      max_len: likewise.
    Raises:
      UserError: a description does not exist, is wrong or contains itself, options are given for
        an ensemble, members have vectors of different widths, or as `saved_model.load`.
    """
    if not is_ensemble(name):
        options = {"step": step, "pooling": pooling, "max_len": max_len}
        return (Member(1.0, saved_model.load(name, **options)),)
    if not (step is pooling is max_len is None):
        raise UserError(
            f"{name} is an ensemble: give step, pooling and max_len for each member in its JSON "
            "file, not as options."
        )
    terms = split_sum(name)
    if len(terms) == 1 and (description := find_description(name)) is not None:
        members = _read(description, ())
    else:
        members = tuple(
            Member(weight * member.weight, member.model)
            for weight, term in terms
            for member in load_members(term)
        )
    _check_widths(name, members)
    return members


def is_ensemble(name: str | Path) -> bool:
    """Whether `name` is a sum of models or describes one, and not one model.

    Raises UserError if `name` is a .json file that does not exist.
    """
    return split_sum(name) != [(1.0, str(name))] or find_description(name) is not None


def split_sum(name: str | Path) -> list[tuple[float, str]]:
    """The weights and names of `0.3 * A + 0.7 * B`; [(1.0, name)] for the name of one model.

    Raises UserError for a weight that is not a number above 0, to 1e6.
    """
    text = str(name)
    if (" + " not in text and " * " not in text) or user_path(text).exists():
        return [(1.0, text)]
    terms = []
    for term in text.split(" + "):
        weight, mark, model = term.rpartition(" * ")
        try:
            number = float(weight) if mark else 1.0
        except ValueError:
            number = 0.0
        if not model.strip() or not 0 < number <= MOST_WEIGHT:
            raise UserError(
                f"{name}: {term!r} is not a model or WEIGHT * MODEL with a weight above 0, to "
                f"{MOST_WEIGHT:g}: correct it."
            )
        terms.append((number, model.strip()))
    return terms


def computed_in(dtype: str, members: tuple[Member, ...]) -> tuple[Member, ...]:
    """The members, with matrix products in "float32" or "bfloat16"."""
    return tuple(
        Member(
            weight,
            dataclasses.replace(model, bank=dataclasses.replace(model.bank, compute_dtype=dtype)),
        )
        for weight, model in members
    )


def prompted(
    members: tuple[Member, ...], prompt: str | None, prompt_name: str | None
) -> tuple[Member, ...]:
    """The members, which put a text, or their own prompt of that name, before each sentence.

    With neither they are unchanged. Raises UserError if a member has no such prompt.
    """
    if prompt is prompt_name is None:
        return members
    return tuple(
        Member(
            weight,
            dataclasses.replace(
                model,
                serving=dataclasses.replace(
                    model.serving, chosen_prompt=model.serving.prompt(prompt, prompt_name)
                ),
            ),
        )
        for weight, model in members
    )


def find_description(name: str | Path) -> Path | None:
    """The JSON file that describes the ensemble `name`, or None if `name` is another model.

    Raises UserError if `name` is a .json file that does not exist.
    """
    path = user_path(name)
    if (path / DESCRIPTION).is_file():
        return path / DESCRIPTION
    if path.suffix != ".json" or path.is_dir():
        return None
    if not path.is_file():
        raise UserError(f"{name}: no such file; give the JSON file of an ensemble.")
    return path


def source(members: tuple[Member, ...]) -> str:
    """The members as text for a log line: `0.3 * runs/a + 0.7 * runs/b`."""
    if len(members) == 1 and members[0].weight == 1:
        return members[0].model.source
    return " + ".join(f"{member.weight:g} * {member.model.source}" for member in members)


def fingerprint(members: tuple[Member, ...]) -> str:
    """sha256 (hex) of everything that determines the vectors.

    This is the weights, tokenizers, pooling, lengths, the dtype of matrix products, and what the
    folders do before and after: default prompt, scaling, truncation.
    """
    digest = hashlib.sha256()
    for weight, model in members:
        bank = model.bank
        shape = [
            weight,
            str(bank.architecture),
            bank.num_towers,
            bank.pooling,
            model.serving_length,
        ]
        if bank.compute_dtype != "float32":  # so that hashes of float32 models stay as they were
            shape.append(bank.compute_dtype)
        if model.serving.changes():
            shape.append(model.serving.changes())
        digest.update(json.dumps(shape).encode())
        digest.update(model.tokenizer.backend_tokenizer.to_str().encode())
        for path, leaf in jax.tree.leaves_with_path(model.params):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).data)
    return digest.hexdigest()


def _read(path: Path, above: tuple[Path, ...]) -> tuple[Member, ...]:
    if path.resolve() in above:
        raise UserError(f"{path}: this ensemble contains itself; remove it from its members.")
    found = []
    for number, entry in enumerate(_entries(path)):
        where = f"{path}: member {number}"
        name, weight, options = _check_entry(where, entry)
        name = _inside(where, path.parent, name)
        description = find_description(name)
        if description is None:
            try:
                inner = (Member(1.0, saved_model.load(name, **options)),)
            except UserError as error:
                raise UserError(
                    f"{where}: {error} (Write a member's options beside its model.)"
                ) from error
        elif options:
            raise UserError(
                f"{where}: {name} is an ensemble; write {min(options)} into its own file."
            )
        else:
            inner = _read(description, (*above, path.resolve()))
        found += [Member(weight * member.weight, member.model) for member in inner]
        if len(found) > MOST_MEMBERS:
            raise UserError(f"{path}: more than {MOST_MEMBERS} members, including nested ones.")
    return tuple(found)


def _inside(where: str, folder: Path, name: str) -> str:
    """A member's name, relative to the description's folder if it exists there."""
    model = os.path.expanduser(saved_model.split_name(name)[0])
    beside = os.path.join(folder, model)
    found = os.path.exists(beside)
    local = found or os.path.isabs(model)
    if ".." in Path(model).parts or local and not lies_in(beside, folder):
        raise UserError(
            f"{where}: {name!r:.200} is outside {folder}: move the description into a "
            "folder above its members."
        )
    return os.path.join(folder, os.path.expanduser(name)) if found else name


def _entries(path: Path) -> list[Any]:
    content = read_json(path, advice="correct it")
    entries = content.get("members")
    if not isinstance(entries, list) or not entries or content.keys() != {"members"}:
        raise UserError(
            f'{path}: an ensemble is {{"members": [{{"model": ..., "weight": ...}}, ...]}} with '
            "at least one member and nothing else: correct it."
        )
    return entries


def _check_entry(where: str, entry: Any) -> tuple[str, float, dict[str, Any]]:
    if not isinstance(entry, dict) or not {"model", "weight"} <= entry.keys():
        raise UserError(f'{where}: needs "model" and "weight".')
    unknown = entry.keys() - {"model", "weight", *OPTIONS}
    if unknown:
        raise UserError(
            f"{where}: unknown field {reprlib.repr(min(unknown))}: use {', '.join(OPTIONS)}."
        )
    name, weight = entry["model"], entry["weight"]
    if not isinstance(name, str) or not name:
        raise UserError(f"{where}: model = {reprlib.repr(name)}: give a path or a name.")
    if type(weight) not in (int, float) or not 0 < weight <= MOST_WEIGHT:
        raise UserError(
            f"{where}: weight = {reprlib.repr(weight)}: give a number above 0, to {MOST_WEIGHT:g}."
        )
    options = {key: entry[key] for key in OPTIONS if entry.get(key) is not None}
    for key, value in options.items():
        if type(value) is not OPTIONS[key]:
            raise UserError(
                f"{where}: {key} = {reprlib.repr(value)} is not of type {OPTIONS[key].__name__}."
            )
    return name, float(weight), options


def _check_widths(name: str | Path, members: tuple[Member, ...]) -> None:
    widths = [member.model.bank.architecture.hidden_size for member in members]
    for member, width in zip(members, widths, strict=True):
        if width != widths[0]:
            raise UserError(
                f"{name}: vectors of different widths cannot be added: "
                f"{members[0].model.source} has {widths[0]}, {member.model.source} {width}."
            )
