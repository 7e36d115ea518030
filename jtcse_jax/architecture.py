"""The shape of an encoder and the way the towers of a bank cross: a model without its weights."""

import dataclasses
import reprlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, get_args, get_origin, get_type_hints

from typeguard import CollectionCheckStrategy, TypeCheckError, check_type

from jtcse_jax.errors import UserError
from jtcse_jax.families.registry import FAMILIES

Activation = Literal["gelu", "gelu_new", "gelu_pytorch_tanh", "relu"]

# How the last hidden states of a sentence become one vector, by sentence-transformers' names.
Pooling = Literal["cls", "mean", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


def check_fields(section: str, fields: object) -> None:
    """Raises UserError if a field has a value that its type does not allow.

    The command line checks its own arguments; this function checks values from config files.
    """
    for name, kind in get_type_hints(type(fields)).items():
        value = getattr(fields, name)
        try:
            check_type(value, kind, collection_check_strategy=CollectionCheckStrategy.ALL_ITEMS)
        except TypeCheckError as error:
            literals = [one for one in (kind, *get_args(kind)) if get_origin(one) is Literal]
            if literals:  # alone, or beside None
                allowed = "choose one of " + ", ".join(map(str, get_args(literals[0])))
            else:
                allowed = f"must be {kind.__name__ if isinstance(kind, type) else kind}"
            raise UserError(f"{section}{name} = {value!r}: {allowed}.") from error
        # Rejects infinity, NaN and integers too large for a float.
        if isinstance(value, int | float) and not abs(value) < 1e300:
            raise UserError(f"{section}{name} = {reprlib.repr(value)}: must be a finite number.")


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Raises UserError if a field has none of the names of a registry."""
    if value not in choices:
        raise UserError(f"{name} = {reprlib.repr(value)}: choose one of {', '.join(choices)}.")


@dataclass(frozen=True)
class Architecture:
    """The shape of one encoder, with the fields of a Hugging Face `config.json`."""

    family: str = "bert"
    """bert, roberta (whose positions start at pad_token_id + 1), distilbert, mpnet, electra or
    modernbert."""
    vocab_size: int = 30522
    """Rows of the token embedding, one per token of the vocabulary."""
    hidden_size: int = 768
    """Width of the hidden states (D)."""
    num_layers: int = 12
    """Number of transformer layers."""
    num_heads: int = 12
    """Attention heads per layer (H); must divide hidden_size."""
    intermediate_size: int = 3072
    """Width of the feed-forward layer."""
    max_positions: int = 512
    """Rows of the position embedding (roberta, mpnet: longest sentence + pad_token_id + 1);
    modernbert: longest sentence."""
    type_vocab_size: int = 2
    """bert, roberta, electra: rows of the token-type embedding; sentences always use type 0."""
    layer_norm_eps: float = 1e-12
    """Epsilon of every LayerNorm."""
    pad_token_id: int = 0
    """Id of the padding token; for roberta and mpnet it also sets the first position."""
    activation: Activation = "gelu"
    """Activation of the feed-forward layer: exact GELU, two names of its tanh form, or ReLU."""
    embedding_size: int = 128
    """electra: width of the embeddings, projected to hidden_size if it differs."""
    global_every: int = 3
    """modernbert: every n-th layer, from the first, attends to whole sentences."""
    local_window: int = 128
    """modernbert: the other layers attend to tokens at most half this number away."""
    global_rope_theta: float = 160000.0
    """modernbert: base of the rotary positions in layers that attend to whole sentences."""
    local_rope_theta: float = 10000.0
    """modernbert: the same for the other layers."""

    def __post_init__(self):
        check_fields("model.scratch.", self)
        check_choice("model.scratch.family", self.family, FAMILIES)
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), int(field.name != "pad_token_id")
            if field.type is int and value < least:
                raise UserError(f"model.scratch.{field.name} = {value}: use at least {least}.")
        if self.hidden_size % self.num_heads:
            raise UserError(
                f"model.scratch.num_heads = {self.num_heads} does not divide "
                f"hidden_size = {self.hidden_size}: choose a divisor."
            )
        if self.has("global_rope_theta") and self.hidden_size // self.num_heads % 2:
            raise UserError(
                f"model.scratch.hidden_size = {self.hidden_size}: rotary positions need an even "
                f"number of channels in each of the {self.num_heads} heads."
            )

    def has(self, field: str) -> bool:
        """Whether the family has this field; if not, its value has no effect."""
        return field in FAMILIES[self.family].fields

    @property
    def embedding_width(self) -> int:
        """Width of the token embeddings."""
        return self.embedding_size if self.has("embedding_size") else self.hidden_size

    @property
    def has_relative_bias(self) -> bool:
        """Whether attention scores have a bias by relative position."""
        return FAMILIES[self.family].relative_bias

    @property
    def position_offset(self) -> int:
        """Index of the first position embedding that is used."""
        return self.pad_token_id + 1 if FAMILIES[self.family].positions_after_padding else 0

    @property
    def longest_sentence(self) -> int:
        """Largest number of tokens in a sentence."""
        return self.max_positions - self.position_offset


@dataclass(frozen=True)
class Cross:
    """Cross-attention between the towers, in training only. See docs/reproduction.md."""

    mode: Literal["side", "main", "off"] = "side"
    """side: crossed streams run beside the plain streams; main: the plain streams themselves
    cross; off: no cross-attention."""
    exchange: Literal["value", "probs"] = "value"
    """What a crossed layer takes from the neighbouring tower: its values, or its attention
    probabilities."""
    num_layers: int = 6
    """Number of crossed layers, equally spaced; must divide the encoder's layers. With 0 no layer
    crosses, and the crossed stream equals the plain one."""

    def __post_init__(self):
        check_fields("model.cross.", self)

    def interval(self, num_layers: int) -> int | None:
        """Returns k if layers k, 2k, ... (from 1) cross, None if none does; UserError if uneven."""
        if self.mode == "off" or self.num_layers == 0:
            return None
        if self.num_layers < 0 or num_layers % self.num_layers:
            divisors = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
            raise UserError(
                f"model.cross.num_layers = {self.num_layers} does not divide the encoder's "
                f"{num_layers} layers: choose 0 or one of {divisors}."
            )
        return num_layers // self.num_layers
