"""The models that `evaluate` scores: of this project, or of sentence-transformers."""

import logging
from typing import Any, NamedTuple

import numpy as np

from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.foreign import PREFIX, ForeignEncoder
from jtcse_jax.store import ensemble
from jtcse_jax.store.card import read_card
from jtcse_jax.store.ensemble import Member

logger = logging.getLogger(__name__)


class Model(NamedTuple):
    """An encoder of this project or of sentence-transformers."""

    encoder: SentenceEncoder | ForeignEncoder
    members: tuple[Member, ...]  #: empty for a foreign encoder
    normalize: bool  #: whether its folder scales vectors to length 1
    description: dict[str, Any]  #: the conditions of its scores, for JSON

    def encode(self, sentences: list[str]) -> np.ndarray:
        """[n, D] float32, raw or scaled to length 1, as the model's folder says."""
        if isinstance(self.encoder, ForeignEncoder):  # sentence-transformers scales them itself
            return self.encoder.encode(sentences)
        return self.encoder.encode(sentences, normalize_embeddings=self.normalize)

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
    """Loads the model `name`; `options` are those of `ensemble.load_members`.

    A foreign model takes no options and has its own dtype; for others `compute_dtype` is the dtype
    of matrix products. Warns if the folder has prompts, which are not applied. Raises the errors of
    `ensemble.load_members` and `ForeignEncoder`.
    """
    if name.startswith(PREFIX):
        given = [key for key, value in options.items() if value is not None]
        if given:
            raise UserError(f"{name}: its folder decides {given[0]}: leave this option out.")
        foreign = ForeignEncoder(name)
        description = {"model": name, "fingerprint": foreign.fingerprint()}
        return Model(foreign, (), False, description | {"members": [foreign.describe()]})
    members = ensemble.computed_in(compute_dtype, ensemble.load_members(name, **options))
    # For a sum of several vectors, no folder says whether to scale it.
    cards = [read_card(member.model) for member in members]
    normalize = len(cards) == 1 and cards[0].normalize
    if any(card.prompts for card in cards):
        logger.warning("%s: the prompts of its folder are not applied.", name)
    description = {
        "model": ensemble.source(members),
        "fingerprint": ensemble.fingerprint(members),
        "normalize": normalize,
        "members": [
            {
                "weight": weight,
                "model": model.source,
                "towers": model.bank.num_towers,
                "pooling": model.bank.pooling,
                "serving_length": model.serving_length,
                "compute_dtype": model.bank.compute_dtype,
            }
            for weight, model in members
        ],
    }
    encoder = SentenceEncoder.of(members)
    assert encoder.members is not None  # `of` has set them
    return Model(encoder, encoder.members, normalize, description)
