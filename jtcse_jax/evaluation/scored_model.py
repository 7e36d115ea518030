"""The models that `evaluate` scores: of this project, or of sentence-transformers."""

from typing import Any, NamedTuple

import numpy as np

from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.foreign import PREFIX, ForeignEncoder
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


def load_model(name: str, compute_dtype: str = "float32", **options: Any) -> Model:
    """Loads the model `name`; `options` are those of `ensemble.load_members` and `prompted`.

    A foreign model takes no options and has its own dtype; for others `compute_dtype` is the dtype
    of matrix products. Raises the errors of these functions and of `ForeignEncoder`.
    """
    if name.startswith(PREFIX):
        given = [key for key, value in options.items() if value is not None]
        if given:
            raise UserError(f"{name}: its folder decides {given[0]}: leave this option out.")
        foreign = ForeignEncoder(name)
        description = {"model": name, "fingerprint": foreign.fingerprint()}
        return Model(foreign, (), description | {"members": [foreign.describe()]})
    prompts = [options.pop(key, None) for key in ("prompt", "prompt_name")]
    members = ensemble.computed_in(compute_dtype, ensemble.load_members(name, **options))
    members = ensemble.prompted(members, *prompts)
    encoder = SentenceEncoder.of(members)
    assert encoder.members is not None  # `of` has set them
    description = {
        "model": ensemble.source(members),
        "fingerprint": ensemble.fingerprint(members),
        "normalize": encoder.normalizes,
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
