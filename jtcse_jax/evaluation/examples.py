"""Sentences on which a model is looked at: scored pairs, or the beginning of a text."""

from dataclasses import dataclass

from jtcse_jax.data.sources import Source, open_source
from jtcse_jax.errors import UserError
from jtcse_jax.evaluation.development import Development
from jtcse_jax.evaluation.diagnostics import EmbeddedPairs, embed_pairs, embed_sentences
from jtcse_jax.evaluation.sts import Encode, Pairs

SENTENCES = 512  # most that are taken of a text


@dataclass(frozen=True)
class Examples:
    """Scored pairs, or sentences."""

    name: str  #: of the file
    content: Pairs | list[str]

    def embed(self, encode: Encode) -> EmbeddedPairs:
        """Their vectors; errors as `embed_pairs` and `embed_sentences`."""
        if isinstance(self.content, Pairs):
            return embed_pairs(encode, self.content)
        return embed_sentences(encode, self.content)

    def __str__(self) -> str:
        if isinstance(self.content, Pairs):
            return f"{len(self.content)} pairs of {self.name}"
        return f"{len(self.content)} sentences of {self.name}"


def scored_pairs(name: str) -> Examples:
    """The pairs of a development set; errors as `Development`."""
    return Examples(name, Development(name).pairs)


def text_sentences(name: str, columns: tuple[str, ...] = ()) -> Examples:
    """Sentences of a text, as `first_sentences`; UserError if it has fewer than two."""
    found = first_sentences(open_source(name, columns))
    if len(found) < 2:
        raise UserError(f"{name} has fewer than two different sentences: give more.")
    return Examples(name, found)


def first_sentences(source: Source) -> list[str]:
    """The first different sentences of a text, at most SENTENCES."""
    found: dict[str, None] = {}
    for sentence in source.read():
        found[sentence] = None
        if len(found) == SENTENCES:
            break
    return list(found)
