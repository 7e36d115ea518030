"""Extracts sentences from documents: where a sentence ends, what is removed, and which are kept.

The rules are few and the same for every language; split a corpus beforehand if it needs better
ones.

* A sentence ends at a mark that has no other use, whatever follows: `。` and its like in Chinese
  and Japanese, the danda of Devanagari and its neighbours, the marks of Arabic, Urdu, Armenian,
  Ethiopic, Burmese, Khmer and Tibetan.
* It ends at `.`, `!`, `?` or `…` if white space follows and then no small letter; not after an
  initial, a common abbreviation, or a number of one or two digits ("am 3. Mai"). Between two
  letters of Chinese, Japanese or Korean it needs no white space, unless it is `…`.
* Closing quotes and brackets after a mark belong to its sentence. A document's end is an end.
* Thai and Lao have no mark: a document is one sentence, up to the longest that is kept.
* Runs of white space become one space. Control characters, soft hyphens and invisible zero-width
  characters are removed; joiners stay, because some scripts need them.
* A sentence is kept if it has from `min_chars` to `max_chars` characters, and if at least
  `min_letters` of its characters other than spaces are letters of any alphabet, or marks on
  letters. A wide character (Chinese, Japanese, Korean) counts as two: it is a syllable or a word.
* Sentences are duplicates if they differ only in case, spaces, and the width or the encoding of
  their characters.

Every rule takes time in proportion to the text.
"""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from unicodedata import east_asian_width

from jtcse_jax.errors import UserError

KEPT, SHORT, LONG, FEW_LETTERS = "kept", "too short", "too long", "few letters"

_SOFT = ".!?…．‼⁇⁈⁉"
_HARD = "。！？｡।॥؟۔։።፧፨။។៕།༎"
_CLOSING = "\"'”’»)\\]」』】〉》”’）｣"
# Every run of marks is one match, also if it is not an end: with a condition on what follows, a run
# that fails it would be tried again from each of its marks. A space before » is French.
_END = re.compile(rf"[{_SOFT}{_HARD}]+[{_CLOSING}]*(?: »(?!\S))?\s*")
_NO_END = re.compile(
    r"(?<![^\s.(\[\"'“‘«-])(?:e\.g|i\.e|cf|vs|etc|approx|ca|M[rs]|Mrs|Mme|Dra?|Sra?|Prof|Gen|Sen|Rep|Gov|Col|Capt|Lt"
    r"|Sgt|Rev|St|Jr|Fig|No|Nr|Vol|pp|Bd|Abs|bzw|Jan|Feb|Mar|Apr|Aug|Sept?|Oct|Nov|Dec"
    r"|[^\W\d_]|\d\d?)\.\s+$"
)
_MARKS = frozenset(_HARD)
_WIDE = frozenset("WF")
_LONGEST = 8  # characters of an abbreviation and one before it
_OPENING = "\"'“‘«([¿¡"
_REMOVED = dict.fromkeys(
    [*range(0x09), *range(0x0E, 0x1C), *range(0x7F, 0x85), *range(0x86, 0xA0)]
    + [0x00AD, 0x200B, 0x200E, 0x200F, *range(0x202A, 0x202F), *range(0x2060, 0x2070), 0xFEFF]
)


@dataclass(frozen=True, kw_only=True)
class Rules:
    """Which sentences are kept."""

    min_chars: int = 10
    """Shortest sentence kept, in characters; a wide one, as in Chinese, counts as two."""
    max_chars: int = 1000
    """Longest sentence kept, likewise."""
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
        if _is_end(text, max(start, end.start() - _LONGEST), end):
            yield text[start : end.end()].strip()
            start = end.end()
    if rest := text[start:].strip():
        yield rest


def duplicate_key(sentence: str) -> str:
    """Equal for sentences that are duplicates."""
    return "".join(unicodedata.normalize("NFKC", sentence).casefold().split())


def _is_end(text: str, before: int, end: re.Match[str]) -> bool:
    """Whether a sentence ends at some marks; an abbreviation may begin at `before`."""
    if not _MARKS.isdisjoint(end[0]):
        return True
    following = text[end.end() : end.end() + 2].lstrip(_OPENING)[:1]
    if not end[0][-1].isspace():
        between = _is_wide_letter(text[end.start() - 1 : end.start()]), _is_wide_letter(following)
        return all(between) and "…" not in end[0]
    return not (following.islower() or _NO_END.search(text, before, end.end()))


def _is_wide_letter(character: str) -> bool:
    return character.isalpha() and east_asian_width(character) in _WIDE


def _outcome(sentence: str, rules: Rules) -> str:
    length = len(sentence) + sum(map(_WIDE.__contains__, map(east_asian_width, sentence)))
    if length < rules.min_chars:
        return SHORT
    if length > rules.max_chars:
        return LONG
    needed = rules.min_letters * (len(sentence) - sentence.count(" "))
    if sum(map(str.isalpha, sentence)) >= needed:
        return KEPT
    letters = sum(unicodedata.category(character)[0] in "LM" for character in sentence)
    return KEPT if letters >= needed else FEW_LETTERS
