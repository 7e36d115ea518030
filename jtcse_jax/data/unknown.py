"""Counts the characters of a text that a tokenizer does not know.

One [UNK] may stand for a letter or for a whole clause of a script without spaces. So characters are
counted, not tokens.
"""

import json
import logging
from collections.abc import Sequence

import numpy as np
import tokenizers

WARN_ABOVE = 0.01  # share of a text's characters
_FEW = 3  # unknown characters, such as an emoji, that say nothing of a script

_log = logging.getLogger(__name__)


class UnknownCounter:
    """Counts, for one tokenizer, the characters that became its unknown token."""

    def __init__(self, backend: tokenizers.Tokenizer):
        """Takes the Rust backend of a tokenizer; does not change it."""
        self._backend = backend
        model = json.loads(backend.to_str())["model"]
        # A Unigram model has the id of its unknown token, the others have the token.
        self._unknown = model.get("unk_id", backend.token_to_id(model.get("unk_token") or ""))

    def count(self, sentences: Sequence[str], ids: Sequence[Sequence[int]]) -> np.ndarray:
        """[n] int64, unknown characters of each sentence; `ids` are its tokens.

        What the tokenizer cuts off is not counted.
        """
        counts = np.zeros(len(sentences), np.int64)
        chosen = [number for number, tokens in enumerate(ids) if self._unknown in tokens]
        # Only these are tokenised again, with the positions of their tokens.
        encodings = self._backend.encode_batch([sentences[number] for number in chosen])
        for number, encoding in zip(chosen, encodings, strict=True):
            counts[number] = sum(
                stop - start
                for token, (start, stop) in zip(encoding.ids, encoding.offsets, strict=True)
                if token == self._unknown
            )
        return counts


def warn_of_unknown(text: str, unknown: int, characters: int) -> None:
    """Warns if more than `WARN_ABOVE` of the characters of `text`, a name, are unknown.

    In a short text a few may be, unless they are half of it.
    """
    if unknown > WARN_ABOVE * characters and (unknown > _FEW or 2 * unknown > characters):
        _log.warning(
            "%s: %s of the characters are [UNK] to the tokenizer, and the model cannot tell them "
            "apart: use a model whose vocabulary has this script, or train one from scratch with "
            "a larger model.scratch.vocab_size.",
            text,
            percentage(unknown, characters),
        )


def percentage(unknown: int, characters: int) -> str:
    """The share of unknown characters, as in "0.25 %"."""
    return f"{100 * unknown / max(characters, 1):.2f} %"
