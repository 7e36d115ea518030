"""Tables in a terminal: they fit into it, and hold every number."""

import io

import pytest
import rich
from rich.console import Console

from jtcse_jax.evaluation.printed_table import print_table, shortened

TASKS = ("STS12", "STS13", "STS14", "STS15", "STS16", "STS-B", "SICK-R", "average")
LONG = "/home/somebody/projects/runs/pipeline_minilm_seed{}/distilled, step 100 (best by dev score)"
WIDE = ("pair classification_3 of 45", "retrieval_(ours)_40 of 45", "AmazonCounterfactual" * 2)


def printed(monkeypatch, width, *arguments) -> str:
    console = Console(file=io.StringIO(), width=width)
    monkeypatch.setattr(rich, "_console", console)
    print_table(*arguments)
    return console.file.getvalue()


def scores(names, first) -> dict[str, float]:
    return {name: first + number + 0.25 for number, name in enumerate(names)}


@pytest.mark.parametrize("width", [80, 100, 200])
@pytest.mark.parametrize("seeds", [1, 3])
@pytest.mark.parametrize("names", [TASKS, WIDE * 3, TASKS + WIDE])
def test_table_fits_and_has_every_number(monkeypatch, width, seeds, names):
    names = [f"{name}_{number}" for number, name in enumerate(names)]
    rows = {
        LONG.format(number): [scores(names, 10 * number + 20)] * seeds for number in range(2)
    } | {"short": [scores(names, 60)]}
    text = printed(monkeypatch, width, "sts", rows, "how they were made")
    assert max(map(len, text.splitlines())) <= width
    for method in rows.values():
        for value in method[0].values():
            assert f"{value:.2f}" in text
    assert text.count("how they were made") == 1
    one_table = [name.partition("_")[0] for name in names] == list(TASKS) and seeds == 1
    assert text.count(" short ") == 1 or not one_table


def test_names_are_shortened_in_the_middle():
    names = [LONG.format(number) for number in range(2)]
    for size in (len(names[0]) - 1, 60, 20):
        for name in names:
            start, end = shortened(name, size).split("…")
            assert len(start) + len(end) + 1 == size
            assert name.startswith(start) and name.endswith(end) and len(end) >= len(start)
    assert shortened("runs/jtcse", 10) == "runs/jtcse"


def test_a_seed_without_a_score_is_counted(monkeypatch):
    rows = {"three": [{"a": 1.0}, {"a": 2.0}, {}], "none": [{}]}
    text = printed(monkeypatch, 80, "sts", rows, "")
    assert "1.50" in text and "2 of 3 seeds" in text
