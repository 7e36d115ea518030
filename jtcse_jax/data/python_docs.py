"""The English sentences in every Python installation: its language reference and docstrings.

The standard library is parsed, not imported: importing all of it has side effects. The sentences
depend only on the Python files, not on where they are installed.
"""

import ast
import functools
import hashlib
import inspect
import re
import sys
import sysconfig
import warnings
from collections.abc import Iterator
from pathlib import Path

_FEWEST_WORDS, _MOST_WORDS = 4, 50
_LEAST_PLAIN_SHARE = 0.75
_NO_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idle_test", "__pycache__"}

_ROLE = re.compile(r":[a-zA-Z:+-]+:`~?([^`<]+?)(?: <[^`]*>)?`")
_LINK = re.compile(r"`([^`<]+?) <[^`]*>`__?")
_QUOTED_CODE = re.compile(r"``(.+?)``|`([^`]+)`|\*\*(\S.*?)\*\*|(?<![\w*])\*(\w[^*]*)\*(?![\w*])")
_OLD_QUOTES = re.compile(r"`([\w.()]+)'")
_QUOTED_WORD = re.compile(r'"([\w.]+(?:\(\))?)"')
_FOOTNOTE = re.compile(r"\s*\[\d+\]_?")
_BULLET = re.compile(r"(?:[*+o•-]|\(?\d{1,2}[.)]|\(?[a-z]\))\s+(?=\S)")
_VERSION_NOTE = re.compile(r"(?:New|Changed|Deprecated since|Added) (?:in )?version [\d.]+:?\s*")
_SENTENCE_END = re.compile(r"[.!?][\"')\]]*\s+(?=[\"'(\[]?[A-Z])")
_ABBREVIATION = re.compile(r"(?:\b(?:e\.g|i\.e|cf|vs|Mr|Mrs|Dr|Prof|St|Fig|Sec|No|[A-Z])|\.\.)\.$")
_WHOLE_SENTENCE = re.compile(r"[A-Z].*[^.][.!?][\"')\]]*", re.DOTALL)
_CODE = re.compile(r"[{}|\\@^~$<>=`]|\s[+*/%&-]+\s|\.\.\.|\w\([^)\s]|://|\w\[|\]\[|_ ")
_PLAIN_WORD = re.compile(r"[(\"'\[]*[A-Za-z]+(?:['/-][A-Za-z]+)*[.,;:!?)\"'\]]*")
_GRAMMAR_WORD = re.compile(
    r"\b(?:the|an?|is|are|was|be|been|of|to|in|on|for|with|by|from|that|this|it|its|if|not|and|or"
    r"|as|at|has|have|can|will|when|which|you|no|all|any|should|must|may|does|do)\b"
)
_TYPOGRAPHY = str.maketrans({"“": '"', "”": '"', "‘": "'", "’": "'", "…": "...", "\u00a0": " "})


@functools.cache
def sentences() -> tuple[str, ...]:
    """The distinct sentences of 4 to 50 words, in the order of the text."""
    found: dict[str, str] = {}
    for text in _texts():
        for paragraph in _paragraphs(text):
            for sentence in _split(_clean(paragraph)):
                if _is_prose(sentence):
                    found.setdefault(sentence.casefold(), sentence)
    return tuple(found.values())


@functools.cache
def identity() -> str:
    """sha256 (hex) of everything that `sentences` depends on: the files read and this one."""
    digest = hashlib.sha256(sys.version.encode())
    for path in (*_library_files(), Path(__file__)):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _texts() -> Iterator[str]:
    """The topics of the language reference, then every docstring of the standard library."""
    for path in _library_files():
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # invalid escapes in the library's strings
            try:
                tree = ast.parse(path.read_bytes())
            except (SyntaxError, ValueError):  # a file kept to test a parser
                continue
        if path.parent.name == "pydoc_data":
            yield from _topics(tree)
        yield from _docstrings(tree)


def _library_files() -> list[Path]:
    """The .py files of the standard library: the reference first, the rest in sorted order."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = [path.relative_to(root) for path in root.rglob("*.py")]
    own = [
        path
        for path in paths
        if path.parts[0].removesuffix(".py") in sys.stdlib_module_names
        or path.parts[0] == "pydoc_data"
        if not _NO_LIBRARY.intersection(path.parts)
    ]
    own.sort(key=lambda path: (path.parts[0] != "pydoc_data", path.parts))
    return [root / path for path in own]


def _topics(tree: ast.Module) -> Iterator[str]:
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Dict):
            yield from ast.literal_eval(node.value).values()


def _docstrings(
    node: ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef,
) -> Iterator[str]:
    """Docstrings of a module or class and all inside it, in the order of the file."""
    text = ast.get_docstring(node, clean=True)
    if text:
        yield text
    for child in node.body:
        if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield from _docstrings(child)


def _paragraphs(text: str) -> Iterator[str]:
    """Runs of lines of equal indentation, joined; a list item is a paragraph, no doctests."""
    lines: list[str] = []
    indent = 0
    in_doctest = False
    for line in [*inspect.cleandoc(text).expandtabs().splitlines(), ""]:
        stripped = line.strip()
        in_doctest = bool(stripped) and (in_doctest or stripped.startswith((">>>", "...")))
        is_text = any(map(str.isalnum, stripped)) and not in_doctest
        bullet = _BULLET.match(stripped)
        line_indent = len(line) - len(line.lstrip()) + (bullet.end() if bullet else 0)
        if lines and (bullet or not is_text or line_indent != indent):
            yield " ".join(lines)
            lines = []
        if is_text:
            lines.append(stripped[bullet.end() :] if bullet else stripped)
            indent = line_indent
    if lines:
        yield " ".join(lines)


def _clean(paragraph: str) -> str:
    """The paragraph without markup: roles, links, quoting of code, footnotes, version notes."""
    text = paragraph.translate(_TYPOGRAPHY)
    text = _OLD_QUOTES.sub(r"\1", _LINK.sub(r"\1", _ROLE.sub(r"\1", text)))
    text = _QUOTED_CODE.sub(lambda match: next(filter(None, match.groups())), text)
    text = _VERSION_NOTE.sub("", _FOOTNOTE.sub("", _QUOTED_WORD.sub(r"\1", text)))
    return " ".join(text.split())


def _split(paragraph: str) -> Iterator[str]:
    start = 0
    for end in _SENTENCE_END.finditer(paragraph):
        if not _ABBREVIATION.search(paragraph[start : end.start() + 1]):
            yield paragraph[start : end.end()].strip()
            start = end.end()
    yield paragraph[start:].strip()


def _is_prose(sentence: str) -> bool:
    words = sentence.split()
    if not _FEWEST_WORDS <= len(words) <= _MOST_WORDS:
        return False
    if not _WHOLE_SENTENCE.fullmatch(sentence) or _CODE.search(sentence):
        return False
    plain = sum(map(bool, map(_PLAIN_WORD.fullmatch, words)))
    if _GRAMMAR_WORD.search(sentence):
        return plain >= _LEAST_PLAIN_SHARE * len(words)
    return plain == len(words)
