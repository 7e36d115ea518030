"""Extracts sentences from documents: where a sentence ends, what is removed, and which are kept.

The rules are few and the same for every language; split a corpus beforehand if it needs better
ones.

* A sentence ends at `.`, `!`, `?` or `…`, with its closing quotes and brackets, if white space
  follows and then no small letter; not after an initial or a common abbreviation. It also ends at
  `。`, `！` or `？`, whatever follows, and at the end of the document.
* Runs of white space become one space. Control characters, soft hyphens and invisible zero-width
  characters are removed; joiners stay, because some scripts need them.
* A sentence is kept if it has from `min_chars` to `max_chars` characters, and if at least
  `min_letters` of its characters other than spaces are letters of any alphabet, or marks on
  letters.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass

from jtcse_jax.errors import UserError

KEPT, SHORT, LONG, FEW_LETTERS = "kept", "too short", "too long", "few letters"

_END = re.compile(r"""[.!?…]+["'”’»)\]]*\s+|[。！？]+[」』”’）]*\s*""")
_ABBREVIATION = re.compile(
    r"\b(?:e\.g|i\.e|cf|vs|etc|Mr|Mrs|Ms|Dr|Prof|St|Jr|Sr|Fig|No|Vol|pp|ca|[^\W\d_])\.\s+$"
)
_LONGEST = 8  # characters of an abbreviation and one before it; a longer search is quadratic
_OPENING = "\"'“‘«([¿¡"
_REMOVED = dict.fromkeys(
    [*range(0x09), *range(0x0E, 0x1C), *range(0x7F, 0x85), *range(0x86, 0xA0)]
    + [0x00AD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which sentences are kept."""

    min_chars: int = 10
    """Shortest sentence kept, in characters."""
    max_chars: int = 1000
    """Longest sentence kept, in characters."""
    min_letters: float = 0.6
    """Smallest share of letters among the characters other than spaces, from 0 to 1."""

    def __post_init__(self):
        if not 1 <= self.min_chars <= self.max_chars:
            raise UserError(
                f"min_chars = {self.min_chars} and max_chars = {self.max_chars}: give numbers from "
                "1, the smaller one first."
            )
        if not 0 <= self.min_letters <= 1:
            raise UserError(f"min_letters = {self.min_letters}: give a share from 0 to 1.")


def examine(document: str, rules: Rules) -> Iterator[tuple[str, str]]:
    """For each sentence: its outcome (`KEPT` or the reason it is dropped), and the clean text."""
    # Clean first: a line break inside a sentence must not hide its end.
    clean = " ".join(document.translate(_REMOVED).split())
    for sentence in split(clean):
        yield _outcome(sentence, rules), sentence


def split(text: str) -> Iterator[str]:
    """The non-empty sentences of a text, stripped. Joined, they are the text without spaces."""
    start = 0
    for end in _END.finditer(text):
        following = text[end.end() : end.end() + 2].lstrip(_OPENING)
        ends = text[end.start()] in "。！？" or not (
            following[:1].islower()
            or _ABBREVIATION.search(text, max(start, end.start() - _LONGEST), end.end())
        )
        if ends and text[start : end.end()].strip():
            yield text[start : end.end()].strip()
            start = end.end()
    if text[start:].strip():
        yield text[start:].strip()


def _outcome(sentence: str, rules: Rules) -> str:
    if len(sentence) < rules.min_chars:
        return SHORT
    if len(sentence) > rules.max_chars:
        return LONG
    needed = rules.min_letters * (len(sentence) - sentence.count(" "))
    if sum(map(str.isalpha, sentence)) >= needed:
        return KEPT
    letters = sum(unicodedata.category(character)[0] in "LM" for character in sentence)
    return KEPT if letters >= needed else FEW_LETTERS
