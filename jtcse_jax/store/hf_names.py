"""The strict table of names between this encoder's parameters and Hugging Face's tensors.

It is used in both directions. A tensor that is missing, extra or misshaped is a problem, and all
problems are listed. Only tensors that an encoder does not have (heads, position buffers) are
skipped.
"""

import os
import re
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from jtcse_jax.architecture import Architecture
from jtcse_jax.models.towers import Params, tower_shapes

# The name of a module here -> its name at Hugging Face, outside the layers and inside one.
OUTSIDE = {
    "embeddings.word": "embeddings.word_embeddings",
    "embeddings.position": "embeddings.position_embeddings",
    "embeddings.token_type": "embeddings.token_type_embeddings",
    "embeddings.norm": "embeddings.LayerNorm",
    "pooler": "pooler.dense",
}
INSIDE = {
    "attention.query": "attention.self.query",
    "attention.key": "attention.self.key",
    "attention.value": "attention.self.value",
    "attention.output": "attention.output.dense",
    "attention_norm": "attention.output.LayerNorm",
    "intermediate": "intermediate.dense",
    "output": "output.dense",
    "output_norm": "output.LayerNorm",
}
# The head of masked language modelling; its decoder is the token embedding.
MLM_HEAD = {
    "bert": (
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias",
    ),
    "roberta": ("lm_head.dense", "lm_head.layer_norm", "lm_head.bias"),
}
LEAVES = {"kernel": "weight", "embedding": "weight", "scale": "weight", "bias": "bias"}
OLD_ENDINGS = {"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"}
# Found in checkpoints of whole models; `mlp` is the training-only head of SimCSE.
NOT_OURS = re.compile(
    r"(cls|lm_head|classifier|qa_outputs|mlp)\.|embeddings\.(position_ids|token_type_ids)$"
)


def encoder_tensors(tensors: Mapping[str, np.ndarray]) -> tuple[dict[str, np.ndarray], list[str]]:
    """The encoder's tensors under the table's names, and a list of duplicated names."""
    named: dict[str, np.ndarray] = {}
    twice = []
    for name, value in _without_prefix(tensors):
        if NOT_OURS.match(name):
            continue
        if name in named:
            twice.append(f"{name} twice")
        named[name] = value
    return named, twice


def _without_prefix(tensors: Mapping[str, np.ndarray]) -> Iterable[tuple[str, np.ndarray]]:
    """The tensors, their names without the prefix of the encoder and with new endings.

    The prefix varies: "", "bert.", "0.auto_model.", "module.bert." ... A head's prefix is the part
    that it shares with the encoder's, such as the "module." of "module.cls.predictions.bias".
    """
    mark = "embeddings.word_embeddings.weight"
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
    return {
        _their_name(path): leaf.shape[::-1] if _transposed(path) else leaf.shape
        for path, leaf in _leaves(tower_shapes(architecture))
    }


def to_tower(tensors: Mapping[str, np.ndarray], architecture: Architecture) -> Params:
    """One tower's nested parameters, from tensors for which `misfits` returns no problem."""
    params: Params = {}
    for path, _ in _leaves(tower_shapes(architecture)):
        value = tensors[_their_name(path)]
        *parents, last = (int(part) if part.isdigit() else part for part in path.split("."))
        node: dict[Any, Any] = params  # layers have numbers as keys
        for parent in parents:
            node = node.setdefault(parent, {})
        node[last] = np.ascontiguousarray(value.T) if _transposed(path) else value
    return params


def to_mlm_head(tensors: Mapping[str, np.ndarray], architecture: Architecture) -> Params | None:
    """The head of masked language modelling, or None if a tensor is absent or misshaped."""
    renamed = dict(_without_prefix(tensors))
    dense, norm, bias = MLM_HEAD[architecture.family]
    size = architecture.hidden_size
    shapes = {
        f"{dense}.weight": (size, size),
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


def to_tensors(params: Params) -> dict[str, np.ndarray]:
    """One tower's parameters as float32 tensors under the table's names."""
    named = {}
    for path, leaf in _leaves(params):
        value = np.asarray(leaf, np.float32)
        named[_their_name(path)] = np.ascontiguousarray(value.T if _transposed(path) else value)
    return named


def _leaves(params: Params) -> Iterable[tuple[str, Any]]:
    """Pairs of a dotted path, such as `layers.0.attention.query.kernel`, and its leaf."""
    for path, leaf in jax.tree.leaves_with_path(params):
        yield jax.tree_util.keystr(path, simple=True, separator="."), leaf


def _their_name(path: str) -> str:
    module, _, leaf = path.rpartition(".")
    if module.startswith("layers."):
        _, number, module = module.split(".", 2)
        return f"encoder.layer.{number}.{INSIDE[module]}.{LEAVES[leaf]}"
    return f"{OUTSIDE[module]}.{LEAVES[leaf]}"


def _transposed(path: str) -> bool:
    """Whether to transpose: flax stores [inputs, outputs], torch [outputs, inputs]."""
    return path.endswith(".kernel")
