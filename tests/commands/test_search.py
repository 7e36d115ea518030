"""`jtcse_jax.search` prints what `SentenceEncoder.search` finds."""

import dataclasses
import io
import json
import re
import sys

import numpy as np
import pytest
from tiny_models import some_sentences, tiny_model

from jtcse_jax import search
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.errors import UserError
from jtcse_jax.store import exported

SENTENCES = [f"the dog {words}".strip() for words in some_sentences(20, longest=6)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("search")
    exported.export(tiny_model(2), folder / "two")
    (folder / "text.txt").write_text("\n".join([*SENTENCES, "see [/old] river"]))
    return folder


@pytest.fixture
def command(folder, monkeypatch, capsys):
    """Runs the command and returns what it printed."""

    def call(*arguments):
        start = ["search", "--model", str(folder / "two"), "--input", str(folder / "text.txt")]
        monkeypatch.setattr(sys, "argv", [*start, *arguments])
        search.main()
        return capsys.readouterr().out

    return call


def shown(printed):
    """(cosine, number, sentence) of every line of the tables."""
    rows = re.findall(r"^│ *(-?\d\.\d{4}) *│ *(\d+) *│ (.*?) *│$", printed, re.MULTILINE)
    return [(float(cosine), int(number), sentence) for cosine, number, sentence in rows]


def test_every_query_has_its_table(command, folder):
    printed = command("--query", "the cat", "--query", "old [/river]", "--top-k", "3")
    embed = SentenceEncoder.load(folder / "two")
    embed.build_index([*SENTENCES, "see [/old] river"])
    expected = [hit for hits in embed.search(["the cat", "old [/river]"], 3) for hit in hits]
    rows = shown(printed)
    assert [row[1:] for row in rows] == [(hit.index + 1, hit.sentence) for hit in expected]
    assert [row[0] for row in rows] == pytest.approx([hit.score for hit in expected], abs=6e-5)
    assert "the cat" in printed and "old [/river]" in printed


def test_sentences_are_printed_as_they_are(command):
    ((cosine, number, sentence),) = shown(command("--query", "see [/old] river", "--top-k", "1"))
    assert (cosine, number, sentence) == (1.0, 21, "see [/old] river")


def test_json_has_what_the_tables_show(command):
    queries = ("--query", "the cat", "--query", "dog ünd", "--top-k", "2")
    objects = [json.loads(line) for line in command(*queries, "--json").splitlines()]
    assert [one["query"] for one in objects] == ["the cat", "dog ünd"]
    hits = [hit for one in objects for hit in one["hits"]]
    rows = [(round(hit["cosine"], 4), hit["number"], hit["sentence"]) for hit in hits]
    assert rows == shown(command(*queries))


def test_standard_input_is_either_the_text_or_the_queries(command, capsys):
    with pytest.raises(SystemExit):
        command("--input", "-")
    assert "--input -: standard input is the text" in capsys.readouterr().err


def test_queries_come_from_standard_input(command, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("the cat\n\n  dog \n"))
    printed = command("--top-k", "2", "--threshold", "-1")
    assert len(shown(printed)) == 4
    assert shown(printed) == shown(command("--query", "the cat", "--query", "dog", "--top-k", "2"))


def test_threshold_hides_what_is_further_away(command):
    rows = shown(command("--query", "the cat", "--top-k", "20"))
    middle = (rows[7][0] + rows[8][0]) / 2
    assert rows[7][0] > rows[8][0]
    printed = command("--query", "the cat", "--top-k", "20", "--threshold", str(middle))
    assert shown(printed) == rows[:8]


def test_what_cannot_be_is_one_line(command, capsys):
    for arguments, said in (
        (("--top-k", "0"), "error: --top-k 0: "),
        (("--max-len", "999", "--query", "x"), "error: "),
    ):
        with pytest.raises(SystemExit) as exit:
            command(*arguments)
        assert exit.value.code == 2
        assert capsys.readouterr().err.splitlines()[-1].startswith(said)


def test_vectors_and_index_of_an_earlier_command_give_the_same_hits(command, folder, tmp_path):
    expected = shown(command("--query", "the cat"))
    vectors = SentenceEncoder.load(folder / "two").encode([*SENTENCES, "see [/old] river"])
    np.save(tmp_path / "vectors.npy", vectors)
    with_vectors = ("--vectors", str(tmp_path / "vectors.npy"), "--query", "the cat")
    saving = ("--save-index", str(tmp_path / "index"))
    assert shown(command(*with_vectors, *saving)) == expected
    arguments = search.Arguments(
        model=str(folder / "two"), index=str(tmp_path / "index"), query=("the cat",)
    )
    assert shown(command(*with_vectors)) == expected
    several = ("--query", "dog", "--query", "see [/old] river", "--top-k", "3")
    assert shown(command(*with_vectors, *several)) == shown(command("--query", "the cat", *several))
    search.search(arguments)
    with pytest.raises(UserError, match="--backend"):
        search.search(dataclasses.replace(arguments, backend="flat"))
    with pytest.raises(UserError, match="--input"):
        search.search(search.Arguments(model=str(folder / "two"), query=("the cat",)))
    np.save(tmp_path / "vectors.npy", vectors[1:])
    with pytest.raises(SystemExit):
        command(*with_vectors)
