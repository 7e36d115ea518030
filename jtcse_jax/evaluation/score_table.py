"""Tables of scores as text, for a report."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Table:
    """Rows of text; the first cell of each row is its name."""

    title: str
    columns: tuple[str, ...]
    rows: list[list[str]]
    notes: tuple[str, ...] = ()  #: how the numbers are made, and warnings about them
    best: frozenset[tuple[int, int]] = frozenset()  #: (row, column) of the highest in a column
    folded: bool = False  #: collapsed until opened


def score_table(
    title: str,
    rows: Sequence[tuple[str, Mapping[str, float]]],
    protocols: Iterable[str],
    missing: Sequence[str],
) -> Table:
    """Scores by model and task, the average last, with the highest of each column marked.

    Args:
      title: of the table.
      rows: (model, score by task).
      protocols: how the scores are made; repetitions are left out.
      missing: sentences about missing tasks.
    """
    tasks = dict.fromkeys(task for _, scores in rows for task in scores if task != "average")
    columns = [*tasks, "average"]
    notes = [*(protocol + "." for protocol in dict.fromkeys(protocols)), *missing]
    comparable = set(columns)
    for name, scores in rows:
        lacking = [task for task in tasks if task not in scores]
        if lacking:
            comparable.discard("average")
            notes.append(f"{name}: without {', '.join(lacking)}, so its average is of fewer tasks.")
    cells = [[name, *(number(scores.get(task)) for task in columns)] for name, scores in rows]
    best = {
        (row, place)
        for place, task in enumerate(columns, 1)
        for row in range(len(rows))
        if task in comparable and len(rows) > 1 and _is_highest(cells, row, place)
    }
    return Table(title, ("model", *columns), cells, tuple(notes), frozenset(best))


def missing_tasks(results: Sequence[tuple[str, dict[str, Any]]]) -> list[str]:
    """The missing tasks without repetition: models scored together miss the same tasks."""
    missing = [result.get("missing", {}) for _, result in results]
    said = (f"{task} is missing: {reason}." for one in missing for task, reason in one.items())
    return list(dict.fromkeys(said))


def number(value: float | None) -> str:
    """With two decimals; nothing for None."""
    return "" if value is None else f"{value:.2f}"


def _is_highest(cells: list[list[str]], row: int, place: int) -> bool:
    values = [float(line[place]) for line in cells if line[place]]
    return bool(cells[row][place]) and float(cells[row][place]) == max(values)
