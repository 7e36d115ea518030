"""The `config.json` of a Hugging Face folder: which architectures are supported."""

import math
import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

from jtcse_jax.architecture import Activation, Architecture
from jtcse_jax.errors import UserError
from jtcse_jax.families.registry import FAMILIES, find_family, supported
from jtcse_jax.runtime.files import read_json

CONFIG = "config.json"

NUMBERS = ("layer_norm_eps", "global_rope_theta", "local_rope_theta")  # the others are whole
ACTIVATIONS = get_args(Activation)
# A small config must not cause hours of work or gigabytes of memory before the weights are read.
LARGEST = {"num_layers": 128, "type_vocab_size": 256}
LARGEST_OTHER = 2**24


def read_architecture(folder: str | Path) -> Architecture:
    """The architecture in the folder's `config.json`; UserError if it is not supported."""
    path = Path(folder) / CONFIG
    config = read_json(path, advice="name a Hugging Face folder")
    kind = config.get("model_type")
    family = find_family(kind)
    if family is None:
        raise UserError(
            f"{path}: model_type = {reprlib.repr(kind)}: supported are {supported()}; start from "
            "a model of one of them, or only score this one, with evaluate --model "
            "sentence-transformers:NAME."
        )
    for name, value in family.fixed.items():
        if config.get(name, value) != value:
            found = reprlib.repr(config[name])
            raise UserError(f"{path}: {name} = {found}: only {value!r} is supported.")
    try:
        config = family.flatten(config)
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: {error}.") from error
    fields: dict[str, Any] = {
        ours: config.get(theirs, family.defaults.get(ours))
        for ours, theirs in family.fields.items()
    }
    check_shape(path, fields, family.fields)
    return Architecture(family=family.name, **fields)


def check_shape(
    path: Path, fields: Mapping[str, Any], names: Mapping[str, str] | None = None
) -> None:
    """Raises UserError for impossible numbers, before anything of that size is allocated.

    Args:
      path: the file that has the numbers.
      fields: the fields of an `Architecture`, except its family.
      names: the names of fields in the file, if they differ.
    """
    names = names or {}
    for name, value in fields.items():
        where = f"{path}: {names.get(name, name)} = {reprlib.repr(value)}"
        if name == "activation":
            if value not in ACTIVATIONS:
                raise UserError(f"{where}: supported are {', '.join(ACTIVATIONS)}.")
            continue
        if name in NUMBERS:
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


def to_config(architecture: Architecture) -> dict[str, Any]:
    """The `config.json`; dropout and initialiser fields have the defaults of transformers."""
    family = FAMILIES[architecture.family]
    return {
        "architectures": [family.model_class],
        "model_type": family.name,
        **{theirs: getattr(architecture, ours) for ours, theirs in family.fields.items()},
        **family.written,
        "dtype": "float32",
    }
