"""Ensembles: weighted sums of encoders, each with its own tokenizer, pooling and serving length.

An ensemble is described by a JSON file, `ensemble.json` where a folder holds it:

    {"members": [{"model": "runs/jtcse", "weight": 0.3},
                 {"model": "org/name", "weight": 0.7, "pooling": "cls", "max_len": 64}]}

A `model` is a path (relative to the file's folder where it exists there), a hub name, or another
description; `pooling`, `max_len` and `step` are optional and mean what they mean to
`saved_model.load`. A description may come from others, so that its paths lead nowhere else: what
they name lies below the file's folder or, by a plain relative path, below the working directory.
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

from jtcse_jax import saved_model
from jtcse_jax.errors import UserError
from jtcse_jax.models.hf_files import lies_in
from jtcse_jax.saved_model import SavedModel
from jtcse_jax.user_path import user_path

DESCRIPTION = "ensemble.json"
MOST_MEMBERS, MOST_WEIGHT = 64, 1e6
OPTIONS = {"pooling": str, "max_len": int, "step": int}


class Member(NamedTuple):
    """One encoder of a sum."""

    weight: float  #: of its raw vectors; above 0
    model: SavedModel


@dataclass(frozen=True, kw_only=True)
class ModelArguments:
    """The arguments of every command that reads a model."""

    model: str
    """A workdir, an exported folder, a Hugging Face BERT or RoBERTa folder or hub name,
    `package:NAME/FOLDER` of an installed Python package, or the JSON file of an ensemble."""
    step: int | None = None
    """Step of a workdir; by default the best by dev score, or the newest."""
    pooling: Literal["cls", "mean"] | None = None
    """Needed where the model's folder does not say it."""
    max_len: int | None = None
    """Longest sentence in tokens, in place of the model's own serving length."""

    def load_members(self) -> tuple[Member, ...]:
        """The model that is meant; errors as the function `load_members`."""
        return load_members(self.model, step=self.step, pooling=self.pooling, max_len=self.max_len)


@dataclass(frozen=True, kw_only=True)
class EncoderArguments(ModelArguments):
    """The arguments of every command that encodes with a model."""

    compute_dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the products, whatever a model was trained in; the vectors are float32."""

    def load_members(self) -> tuple[Member, ...]:
        """The model that is meant; errors as the function `load_members`."""
        return computed_in(self.compute_dtype, super().load_members())


def load_members(
    name: str | Path,
    *,
    step: int | None = None,
    pooling: str | None = None,
    max_len: int | None = None,
) -> tuple[Member, ...]:
    """The members of an ensemble, or a model as the one member of weight 1.

    Members that are ensembles themselves are replaced by their members, weights multiplied.

    Args:
      name: a description (a .json file or a folder with `ensemble.json`), or any name that
        `saved_model.load` takes.
      step: as in `saved_model.load`; of an ensemble, each member's is in the description.
      pooling: likewise.
      max_len: likewise.
    Raises:
      UserError: a description that is absent, wrong or contains itself, an option given beside
        one, members whose vectors have different widths, or as `saved_model.load`.
    """
    description = find_description(name)
    if description is None:
        options = {"step": step, "pooling": pooling, "max_len": max_len}
        return (Member(1.0, saved_model.load(name, **options)),)
    if not (step is pooling is max_len is None):
        raise UserError(
            f"{name} is an ensemble: give step, pooling and max_len for each member in "
            f"{description}, not as options."
        )
    members = _read(description, ())
    _check_widths(description, members)
    return members


def computed_in(dtype: str, members: tuple[Member, ...]) -> tuple[Member, ...]:
    """The members with products in "float32" or "bfloat16"."""
    return tuple(
        Member(
            weight,
            dataclasses.replace(model, bank=dataclasses.replace(model.bank, compute_dtype=dtype)),
        )
        for weight, model in members
    )


def find_description(name: str | Path) -> Path | None:
    """The JSON file that describes the ensemble `name`, or None where `name` is another model.

    Raises UserError for a .json file that is not there.
    """
    path = user_path(name)
    if (path / DESCRIPTION).is_file():
        return path / DESCRIPTION
    if path.suffix != ".json" or path.is_dir():
        return None
    if not path.is_file():
        raise UserError(f"{name}: there is no such file; give the JSON file of an ensemble.")
    return path


def source(members: tuple[Member, ...]) -> str:
    """Where the members come from, in words for a log line: `0.3 * runs/a + 0.7 * runs/b`."""
    if len(members) == 1 and members[0].weight == 1:
        return members[0].model.source
    return " + ".join(f"{member.weight:g} * {member.model.source}" for member in members)


def fingerprint(members: tuple[Member, ...]) -> str:
    """sha256 (hex) of all that decides the vectors.

    That is weights, tokenizers, pooling, lengths, and the dtype of products.
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
        if bank.compute_dtype != "float32":  # so that without a choice the hash is the old one
            shape.append(bank.compute_dtype)
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
                    f"{where}: {error} (A member's options stand beside it.)"
                ) from error
        elif options:
            raise UserError(
                f"{where}: {name} is an ensemble; {min(options)} belongs in its own file."
            )
        else:
            inner = _read(description, (*above, path.resolve()))
        found += [Member(weight * member.weight, member.model) for member in inner]
        if len(found) > MOST_MEMBERS:
            raise UserError(f"{path}: more than {MOST_MEMBERS} members, inner ones counted.")
    return tuple(found)


def _inside(where: str, folder: Path, name: str) -> str:
    """A member's name, from the description's folder where it is found there."""
    model = os.path.expanduser(saved_model.split_name(name)[0])
    beside = os.path.join(folder, model)
    found = os.path.exists(beside)
    local = found or os.path.isabs(model)
    if ".." in Path(model).parts or local and not lies_in(beside, folder):
        raise UserError(
            f"{where}: {name!r:.200} leads out of {folder}: put the description into a "
            "folder above its members."
        )
    return os.path.join(folder, os.path.expanduser(name)) if found else name


def _entries(path: Path) -> list[Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: no readable JSON ({error}): mend it.") from error
    entries = content.get("members") if isinstance(content, dict) else None
    if not isinstance(entries, list) or not entries or content.keys() != {"members"}:
        raise UserError(
            f'{path}: an ensemble is {{"members": [{{"model": ..., "weight": ...}}, ...]}} with '
            "at least one member and nothing else: mend it."
        )
    return entries


def _check_entry(where: str, entry: Any) -> tuple[str, float, dict[str, Any]]:
    if not isinstance(entry, dict) or not {"model", "weight"} <= entry.keys():
        raise UserError(f'{where}: needs "model" and "weight".')
    unknown = entry.keys() - {"model", "weight", *OPTIONS}
    if unknown:
        raise UserError(
            f"{where}: {reprlib.repr(min(unknown))} is not known: use {', '.join(OPTIONS)}."
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
                f"{where}: {key} = {reprlib.repr(value)} is no {OPTIONS[key].__name__}."
            )
    return name, float(weight), options


def _check_widths(path: Path, members: tuple[Member, ...]) -> None:
    widths = [member.model.bank.architecture.hidden_size for member in members]
    for member, width in zip(members, widths, strict=True):
        if width != widths[0]:
            raise UserError(
                f"{path}: vectors of different widths cannot be added: "
                f"{members[0].model.source} gives {widths[0]}, {member.model.source} {width}."
            )
