"""Brings parameters of an encoder under Hugging Face's names and back, by its family's table.

The table is strict and used in both directions. A tensor that is missing, extra or misshaped is a
problem, and all problems are listed. Only tensors that an encoder does not have (heads, position
buffers) are skipped.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jtcse_jax.architecture import Architecture
from jtcse_jax.families.family import Names
from jtcse_jax.families.registry import FAMILIES
from jtcse_jax.models.towers import Params, tower_shapes

LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Found in checkpoints of whole models: their heads, and `mlp`, the training-only head of SimCSE.
NOT_OURS = re.compile(
    r"(cls|lm_head|classifier|pre_classifier|qa_outputs|mlp|vocab_\w+|generator_\w+|"
    r"discriminator_\w+|head|decoder)\.|embeddings\.(position_ids|token_type_ids)$"
)


def names_of(architecture: Architecture) -> Names:
    """The table of an architecture's family."""
    return FAMILIES[architecture.family].names


def encoder_tensors(
    tensors: Mapping[str, np.ndarray], names: Names
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The encoder's tensors under the table's names, and a list of duplicated names."""
    named: dict[str, np.ndarray] = {}
    twice = []
    for name, value in _without_prefix(tensors, names):
        if NOT_OURS.match(name):
            continue
        for part, part_value in _parts(name, value, names):
            if part in named:
                twice.append(f"{part} twice")
            named[part] = part_value
    return named, twice


def fused(tensors: Mapping[str, np.ndarray], names: Names) -> dict[str, np.ndarray]:
    """The tensors as the family's files have them: the inverse of what `encoder_tensors` splits."""
    whole = dict(tensors)
    for fused_name, parts in names.fused.items():
        first = f".{parts[0]}.weight"
        for name in [name for name in whole if name.endswith(first)]:
            stem = name.removesuffix(first)
            values = [whole.pop(f"{stem}.{part}.weight") for part in parts]
            whole[f"{stem}.{fused_name}.weight"] = np.concatenate(values)
    return whole


def _parts(name: str, value: np.ndarray, names: Names) -> list[tuple[str, np.ndarray]]:
    """The tensors that one tensor of a file holds: itself, or those stacked in it."""
    for fused_name, parts in names.fused.items():
        end = f".{fused_name}.weight"
        if name.endswith(end) and value.ndim == 2 and len(value) % len(parts) == 0:
            values = np.split(value, len(parts))
            stem = name.removesuffix(end)
            return [(f"{stem}.{part}.weight", x) for part, x in zip(parts, values, strict=True)]
    return [(name, value)]


def _without_prefix(
    tensors: Mapping[str, np.ndarray], names: Names
) -> Iterable[tuple[str, np.ndarray]]:
    """The tensors, their names without the prefix of the encoder and with new endings.

    The prefix varies: "", "bert.", "0.auto_model.", "module.bert." ... A head's prefix is the part
    that it shares with the encoder's, such as the "module." of "module.cls.predictions.bias".
    """
    mark = f"{names.outside['embeddings.word']}.weight"
    prefix = next((name.removesuffix(mark) for name in tensors if name.endswith(mark)), "")
    for name, value in tensors.items():
        shared = os.path.commonprefix([prefix.split("."), name.split(".")])
        yield _modern(name.split(".", len(shared))[-1]), value


def _modern(name: str) -> str:
    for old, new in OLD_ENDINGS.items():
        if name.endswith(old):
            return name.removesuffix(old) + new
    return name


def misfits(tensors: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> list[str]:
    """Describes every missing, extra, misshaped or non-finite tensor."""
    return [
        *(f"{name} missing" for name in sorted(shapes.keys() - tensors.keys())),
        *(f"{name} extra" for name in sorted(tensors.keys() - shapes.keys())),
        *(
            f"{name} has shape {list(tensors[name].shape)}, not {list(shape)}"
            for name, shape in shapes.items()
            if name in tensors and tensors[name].shape != shape
        ),
        *(f"{name} not finite" for name, value in tensors.items() if not np.isfinite(value).all()),
    ]


def tensor_shapes(architecture: Architecture) -> dict[str, tuple[int, ...]]:
    """The shape of each tensor, by the table's name."""
    names = names_of(architecture)
    return {
        name: leaf.shape[::-1] if _transposed(path) else leaf.shape
        for path, leaf in _leaves(tower_shapes(architecture))
        if (name := their_name(path, names)) is not None
    }


def to_tower(tensors: Mapping[str, np.ndarray], architecture: Architecture) -> Params:
    """One tower's nested parameters, from tensors for which `misfits` returns no problem.

    Without the modules that the tensors lack.
    """
    params: Params = {}
    for path, _ in _leaves(tower_shapes(architecture)):
        name = their_name(path, names_of(architecture))
        if name is None or name not in tensors:
            continue
        value = tensors[name]
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        node: dict[Any, Any] = params  # layers have numbers as keys
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.ascontiguousarray(value.T) if _transposed(path) else value
    return params


def to_mlm_head(tensors: Mapping[str, np.ndarray], architecture: Architecture) -> Params | None:
    """The head of masked language modelling, or None if a tensor is absent or misshaped."""
    names = names_of(architecture)
    if names.mlm_head is None:
        return None
    renamed = dict(_without_prefix(tensors, names))
    dense, norm, bias = names.mlm_head
    size = architecture.embedding_width
    shapes = {
        f"{dense}.weight": (size, architecture.hidden_size),
        f"{dense}.bias": (size,),
        f"{norm}.weight": (size,),
        f"{norm}.bias": (size,),
        bias: (architecture.vocab_size,),
    }
    if misfits({name: renamed[name] for name in shapes if name in renamed}, shapes):
        return None
    kernel = np.ascontiguousarray(renamed[f"{dense}.weight"].T)
    return {
        "dense": {"kernel": kernel, "bias": renamed[f"{dense}.bias"]},
        "norm": {"scale": renamed[f"{norm}.weight"], "bias": renamed[f"{norm}.bias"]},
        "bias": renamed[bias],
    }


def to_tensors(params: Params, architecture: Architecture) -> dict[str, np.ndarray]:
    """One tower's parameters as float32 tensors under the table's names."""
    named = {}
    for path, leaf in _leaves(params):
        name = their_name(path, names_of(architecture))
        if name is None:
            continue
        value = np.asarray(leaf, np.float32)
        named[name] = np.ascontiguousarray(value.T if _transposed(path) else value)
    return named


def _leaves(params: Params) -> Iterable[tuple[str, Any]]:
    """Pairs of a dotted path, such as `layers.0.attention.query.kernel`, and its leaf."""
    for path, leaf in jax.tree.leaves_with_path(params):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def their_name(path: str, names: Names) -> str | None:
    """The tensor for a parameter here, by its dotted path; None if the family has none for it."""
    module, _, leaf = path.rpartition(".")
    if module.startswith("layers."):
        _, number, module = module.split(".", 2)
        return f"{names.layers}.{number}.{names.inside[module]}.{LEAVES[leaf]}"
    theirs = names.outside.get(module)
    return None if theirs is None else f"{theirs}.{LEAVES[leaf]}"


def _transposed(path: str) -> bool:
    """Whether to transpose: flax stores [inputs, outputs], torch [outputs, inputs]."""
    return path.endswith(".kernel")
