"""Tables of scores for the terminal, no wider than it is."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import rich
from rich.box import SIMPLE_HEAD
from rich.table import Column, Table
from rich.text import Text

NAME = 12  # characters of a method's name that a table has room for, if the name is so long
BETWEEN = 2  # spaces between two columns
EDGES = 2  # spaces at both ends of a line


def print_table(
    title: str, rows: Mapping[str, Sequence[Mapping[str, float]]], caption: str, digits: int = 2
) -> None:
    """Prints a row for each method: each score, or its mean and deviation over the seeds.

    Columns that do not fit into the terminal are printed as further tables below, and a name that
    does not fit is shortened in its middle. A seed may lack a score.
    """
    names = dict.fromkeys(name for seeds in rows.values() for one in seeds for name in one)
    columns = [
        [
            name.replace("_", "\n"),
            *(_cell([one.get(name) for one in seeds], digits) for seeds in rows.values()),
        ]
        for name in names
    ]
    width = rich.get_console().width - EDGES
    wanted = max(map(len, [title, *rows]))
    parts = list(_parts(columns, width - min(wanted, max(NAME, len(title)))))
    for part in parts:
        room = max(width - sum(map(_width, part)), len(title))
        first = Column(title, min_width=min(wanted, room), no_wrap=True)
        table = Table(first, box=SIMPLE_HEAD, pad_edge=False, padding=(0, BETWEEN - 1, 0, 0))
        for header, *_ in part:
            table.add_column(header, justify="right", overflow="fold")
        for number, method in enumerate(rows, start=1):
            table.add_row(Text(shortened(method, room)), *(column[number] for column in part))
        table.caption = Text(caption) if part is parts[-1] else None
        rich.print(table)


def shortened(name: str, size: int) -> str:
    """The name, or its start and end around an ellipsis, in at most `size` characters.

    More is left of the end, where the paths of several runs differ.
    """
    if len(name) <= size:
        return name
    end = 2 * (size - 1) // 3
    return f"{name[: size - 1 - end]}…{name[len(name) - end :]}"


def _parts(columns: Sequence[list[str]], room: int) -> Iterator[list[list[str]]]:
    """The columns in groups that are at most `room` wide; a wider column is a group."""
    part: list[list[str]] = []
    for column in columns:
        if part and sum(map(_width, part)) + _width(column) > room:
            yield part
            part = []
        part.append(column)
    yield part


def _width(column: Sequence[str]) -> int:
    """Characters of a column's header and cells, and of the space before it."""
    return max(len(line) for cell in column for line in cell.split("\n")) + BETWEEN


def _cell(values: Sequence[float | None], digits: int) -> str:
    present = [value for value in values if value is not None]
    if not present:
        return ""
    mean = f"{np.mean(present):.{digits}f}"
    if len(present) < len(values):
        return f"{mean}\n{len(present)} of {len(values)} seeds"
    return f"{mean}\n± {np.std(present, ddof=1):.{digits}f}" if len(present) > 1 else mean
