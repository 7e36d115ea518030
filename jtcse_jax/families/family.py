"""What an encoder family is; `registry.py` lists them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names of modules here -> names at Hugging Face.

    A module that a model of the family lacks may be in the table; a module without a name (a
    pooler) is not written, and drawn when a folder is read.
    """

    outside: Mapping[str, str]
    """Names of the modules outside the layers; must contain "embeddings.word"."""
    inside: Mapping[str, str]
    """Names of the modules inside a layer."""
    layers: str = "encoder.layer"
    """Where the layers are, each under its number."""
    fused: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    """A weight inside a layer that stacks several modules' weights -> the names of its parts, as
    `inside` uses them."""
    mlm_head: tuple[str, str, str] | None = None
    """The head of masked language modelling: dense layer, LayerNorm, bias; None if it cannot be
    continued."""


@dataclass(frozen=True, kw_only=True)
class Family:
    """All that is particular to an encoder family."""

    name: str
    """The `family` of an `Architecture`, and the `model_type` that is written."""
    title: str
    """Its name in messages and model cards."""
    relatives: tuple[str, ...] = ()
    """Other `model_type`s with the same encoder and names, which are read as this family."""
    model_class: str
    """Its class in transformers."""
    general_tokenizer: bool = False
    """Whether transformers loads its tokenizer by the general class, whatever class is named."""
    encoder: str = "bert"
    """Its encoder, a key of `models.encoders.ENCODERS`."""
    positions_after_padding: bool = False
    """Whether the first position is pad_token_id + 1, as in fairseq, instead of 0."""
    relative_bias: bool = False
    """Whether attention scores have a bias by relative position, as in T5."""
    fields: Mapping[str, str]
    """Fields of the `Architecture` that the family has -> their names in `config.json`."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of these fields where `config.json` lacks them; a field without one is required."""
    fixed: Mapping[str, Any] = field(default_factory=dict)
    """Fields of `config.json` that change the computation -> the only supported value."""
    written: Mapping[str, Any] = field(default_factory=dict)
    """Other fields to write into `config.json`, with the defaults of transformers."""
    flatten: Callable[[dict[str, Any]], dict[str, Any]] = lambda config: config
    """Brings newer spellings of a `config.json` into that of `fields`; ValueError with the reason
    if one is not supported."""
    names: Names
