"""The models that `evaluate` scores: of this project, or of sentence-transformers."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.foreign import PREFIX, ForeignEncoder, check_truncate_dim
from jtcse_jax.store import ensemble
from jtcse_jax.store.ensemble import Member


class Model(NamedTuple):
    """An encoder of this project or of sentence-transformers."""

    encoder: SentenceEncoder | ForeignEncoder
    members: tuple[Member, ...]  #: empty for a foreign encoder
    description: dict[str, Any]  #: the conditions of its scores, for JSON

    def encode(self, sentences: list[str]) -> np.ndarray:
        """[n, D] float32, raw or scaled to length 1, as the model's folder defines."""
        return self.encoder.encode(sentences)

    @property
    def losses(self) -> dict[str, int]:
        """Cut sentences, unknown characters and all characters so far; {} if not counted."""
        if isinstance(self.encoder, ForeignEncoder):
            return {}
        return {
            "cut_sentences": self.encoder.truncated,
            "unknown_characters": self.encoder.unknown,
            "characters": self.encoder.characters,
        }


def load_model(
    name: str, compute_dtype: str = "float32", truncate_dim: int | None = None, **options: Any
) -> Model:
    """Loads the model `name`; `options` are those of `ensemble.load_members` and `prompted`.

    A foreign model takes no options and has its own dtype; for others `compute_dtype` is the dtype
    of matrix products. `truncate_dim` keeps only so many components of each vector, the first ones.
    Raises the errors of these functions and of `ForeignEncoder`, and UserError if a vector has
    fewer components.
    """
    if name.startswith(PREFIX):
        given = [key for key, value in options.items() if value is not None]
        if given:
            raise UserError(f"{name}: its folder decides {given[0]}: leave this option out.")
        foreign = ForeignEncoder(name, truncate_dim)
        description = {"model": name, "fingerprint": foreign.fingerprint}
        description |= {"dimensions": foreign.width, "members": [foreign.describe()]}
        return Model(foreign, (), description)
    prompts = [options.pop(key, None) for key in ("prompt", "prompt_name")]
    members = ensemble.computed_in(compute_dtype, ensemble.load_members(name, **options))
    members = ensemble.prompted(members, *prompts)
    if truncate_dim is not None:
        members = _truncated(members, truncate_dim)
    encoder = SentenceEncoder.of(members)
    assert encoder.members is not None  # `of` has set them
    description = {
        "model": ensemble.source(members),
        "fingerprint": ensemble.fingerprint(members),
        "normalize": encoder.normalizes,
        "dimensions": encoder.width,
        "members": [
            {
                "weight": weight,
                "model": model.source,
                "towers": model.bank.num_towers,
                "pooling": model.bank.pooling,
                "serving_length": model.serving_length,
                "prompt": model.serving.prompt(),
                "compute_dtype": model.bank.compute_dtype,
            }
            for weight, model in members
        ],
    }
    return Model(encoder, encoder.members, description)


def _truncated(members: tuple[Member, ...], truncate_dim: int) -> tuple[Member, ...]:
    """The members with only the first components, as if their folders asked for it."""
    width = members[0].model.bank.architecture.hidden_size
    check_truncate_dim(truncate_dim, width)
    return tuple(
        Member(
            weight,
            dataclasses.replace(
                model, serving=dataclasses.replace(model.serving, truncate_dim=truncate_dim)
            ),
        )
        for weight, model in members
    )
