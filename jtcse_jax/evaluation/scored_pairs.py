"""Finds the two sentences and the score in the columns of a file of scored pairs.

| layout | columns |
|---|---|
| named: text with a header, `.jsonl`, `.json`, `.parquet`, `.arrow` | found by name, see below |
| 3 columns | sentence, sentence, score |
| 4 columns | id, sentence, sentence, score |
| 7 to 9 columns (STS-Benchmark) | the score is the fifth, the sentences are the next two |

Columns of text are separated by tabs, `||`, commas or semicolons (`data/text_tables.py` has the
rules for quotes). The header of KorSTS, JSTS, GLUE's STS-B, SICK and the sets of MTEB names its
sentences `sentence1` and `sentence2`, or as in `data.tables.PAIRS`. The score is `score` or one of
its other names; a `label` is the score only in a table without a score column.
"""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jtcse_jax.data import text_files
from jtcse_jax.data.tables import PAIRS, find_table, standard
from jtcse_jax.data.text_tables import Delimited
from jtcse_jax.errors import UserError

_SCORES = (
    *("score", "similarityscore", "relatednessscore", "similarity", "relatedness"),
    *("goldscore", "gold", "rating", "stsscore"),
)
_LABELS = ("label", "labels")
# Positions of both sentences and the score, by the number of columns.
_POSITIONS = {3: (0, 1, 2), 4: (1, 2, 3)} | dict.fromkeys((7, 8, 9), (5, 6, 4))
_WHAT = (
    "write s1<TAB>s2<TAB>score on every line, name the columns sentence1, sentence2 and score in a "
    "header, or use an STS-Benchmark file (7 to 9 columns)"
)


def read_rows(path: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    """The place, both sentences and the score of every record, as they are stored.

    Raises UserError for a file that cannot be read, unknown or ambiguous columns, and a record with
    another number of columns.
    """
    try:
        path = text_files.local_copy(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); check the path") from error
    table = find_table(path, named=True)
    assert table is not None  # with `named` any text is a table
    if isinstance(table, Delimited) and not _names_pairs(table.names):
        yield from _by_position(table)
        return
    columns = find_columns(path, table.names)
    for part in table.parts():
        for number, cells in table.rows(part, columns):
            if len(cells) == len(columns):  # no blank line
                yield table.place(part, number), *cells


def _by_position(table: Delimited) -> Iterator[tuple[str, Any, Any, Any]]:
    layout: Sequence[int] = ()
    for number, cells in table.records():
        if not cells:
            continue
        place = f"{table.path}:{number}"
        count = len(cells)
        if not layout:
            layout = _POSITIONS.get(count, ())
            if layout and not is_number(cells[layout[2]]):
                raise UserError(
                    f"{place}: the score {cells[layout[2]].strip()!r} is not a number; if the "
                    f"line is a header, its columns ({', '.join(table.names)}) are not known: "
                    "name them sentence1, sentence2 and score"
                )
        if not layout or _POSITIONS.get(count) != layout:
            raise UserError(f"{place}: {count} columns between {table.delimiter!r}; {_WHAT}")
        first, second, score = (cells[position] for position in layout)
        yield place, first, second, score


def is_number(text: Any) -> bool:
    """Whether a cell is a finite number."""
    try:
        return math.isfinite(float(text))
    except (TypeError, ValueError):
        return False


def _names_pairs(names: Sequence[str]) -> bool:
    return bool(_pairs_in([standard(name) for name in names]))


def _pairs_in(names: Sequence[str]) -> list[tuple[str, str]]:
    # The label of a premise and a hypothesis is a class.
    return [pair for pair in PAIRS if set(pair) <= set(names) and "premise" not in pair]


def find_columns(table: Path | str, names: Sequence[str]) -> list[str]:
    """The columns of the first sentence, the second one and the score, among `names`.

    Raises UserError, which begins with `table`, if they are not there or ambiguous.
    """
    known = [standard(name) for name in names]
    pairs = _pairs_in(known)
    scores = [name for name in known if name in _SCORES]
    scores = scores or [name for name in known if name in _LABELS]
    wanted = [*(pairs[0] if pairs else ()), *scores]
    if len(pairs) != 1 or len(scores) != 1 or any(known.count(name) > 1 for name in wanted):
        raise UserError(
            f"{table} has the columns {', '.join(names)}: rename those of the sentences to "
            "sentence1 and sentence2 and that of the score to score, and leave out others like them"
        )
    return [names[known.index(name)] for name in wanted]
