"""The sentences of Python's documentation: the rules on a small page, the real ones as a whole."""

import re

import pytest

from jtcse_jax.data import python_docs

MODULE = '''
r"""Reads the settings of a *small* program, e.g. Tetris or chess.

The function :func:`~settings.load` returns ``None`` if the file is empty. It never raises
an error, i.e. `it` is safe [1]_.  See `the manual <http://example.org>`_ for more.

Changed in version 3.9: The default is now taken from the `home' folder.

    >>> load("The file is read here.")
    The result of this is a dictionary.

* The first item of a list
  goes over two lines.
* An item without an end
* A second item stands alone.

It is the sum of a and b. The rest is by J. Smith.

Usage: load(path, mode=None) returns the settings of a file.

the sentence that starts in the middle is not kept.

The sentence that does not end is not kept

The codes 12 13 14 15 and 16 are for the machine.

Too short.
"""

class Settings:
    """The settings of a program."""

    def load(self):
        """The settings of a program.

        Are they read from “disk”?  Yes, they are always read anew!
        """
        text = "This string is not a docstring of anything."

    async def save(self):
        """Writes the settings to a file and closes it."""
'''
EXPECTED = [
    "Reads the settings of a small program, e.g. Tetris or chess.",
    "The function settings.load returns None if the file is empty.",
    "It never raises an error, i.e. it is safe.",
    "See the manual for more.",
    "The default is now taken from the home folder.",
    "The first item of a list goes over two lines.",
    "A second item stands alone.",
    "It is the sum of a and b.",
    "The rest is by J. Smith.",
    "The settings of a program.",
    "Are they read from disk?",
    "Yes, they are always read anew!",
    "Writes the settings to a file and closes it.",
]


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A standard library of the test's own."""
    for name, content in {
        "zlib.py": "'''Zips the bytes of a file.'''",
        "json/decoder.py": MODULE,
        "json/broken.py": "def this is not Python",
        "json/tests/test_it.py": "'''This is a test of the module.'''",
        "site-packages/other.py": "'''This is from somebody else.'''",
        "notstdlib.py": "'''This is not in the standard library.'''",
        "pydoc_data/topics.py": "topics = {'with': 'The \"with\" statement is short.\\n\\nx = y.'}",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content, encoding="utf-8")
    monkeypatch.setattr(python_docs.sysconfig, "get_path", lambda name: str(tmp_path))
    return tmp_path


def test_prose_is_kept_and_code_and_markup_are_not(library):
    found = list(python_docs.sentences.__wrapped__())
    assert found == ["The with statement is short.", *EXPECTED, "Zips the bytes of a file."]


def test_the_identity_changes_with_the_library(library):
    first = python_docs.identity.__wrapped__()
    assert python_docs.identity.__wrapped__() == first
    (library / "zlib.py").write_text("'''Unzips the bytes of a file.'''")
    assert python_docs.identity.__wrapped__() != first


def test_this_python_carries_thousands_of_clean_sentences():
    found = python_docs.sentences()
    assert len(found) > 9_000
    assert len({sentence.casefold() for sentence in found}) == len(found)
    assert all(4 <= len(sentence.split()) <= 50 for sentence in found)
    assert all(sentence[0].isupper() for sentence in found)
    assert not [sentence for sentence in found if re.search(r"[{}`|\\<>=]", sentence)]
    words = [word for sentence in found for word in sentence.split()]
    plain = sum(bool(re.fullmatch(r"[A-Za-z'-]+[.,;:!?]?", word)) for word in words)
    assert plain > 0.9 * len(words)
