"""The corpus that Apache Beam makes, against the same in plain Python; the command around it."""

import gzip
import hashlib
import json
import re
import sys
import unicodedata
from pathlib import Path

import pytest

from jtcse_jax import prepare
from jtcse_jax.config import DataConfig
from jtcse_jax.data import text_files
from jtcse_jax.data.batches import PackedBatches
from jtcse_jax.data.cleaning import KEPT, Rules, examine
from jtcse_jax.data.sources import open_source
from jtcse_jax.data.tokens import TokenCache, tokenize
from jtcse_jax.runtime.output import Output
from jtcse_jax.store import hf_tokenizer

DOCUMENTS = [
    "A cat sat on the mat. Two dogs saw it from far away! Then they ran.",
    "Two dogs saw it from far away! A cat sat on the mat.",
    "",
    "No. 12345 67890 12345 67890. \tThe mat   was\x07 red and blue. Was it? Yes, it was.",
    "Dr. Smith wrote a book about cats. " + "very " * 250 + "long.",
    "TWO DOGS SAW IT from far away! Two dogs saw it from\u00a0far away ! "
    "Ｔwo dogs saw it from far away！",
    *(f"This is document {'x' * i} of many. It ends with its number, {i}." for i in range(40)),
]
WORDS = "a cat sat on the mat two dogs saw it from far away then they ran this is document of many"


@pytest.fixture
def documents(tmp_path, monkeypatch):
    """Documents in a plain file of several shards and in a packed one; returns their glob."""
    monkeypatch.setattr(text_files, "_PART_BYTES", 500)
    folder = tmp_path / "documents"
    folder.mkdir()
    (folder / "a.txt").write_text("\n".join(DOCUMENTS[:30]) + "\n", encoding="utf-8")
    with gzip.open(folder / "b.txt.gz", "wt", encoding="utf-8") as file:
        file.write("\n".join(DOCUMENTS[30:] + DOCUMENTS[:3]))
    return f"{folder}/*"


@pytest.fixture
def tokenizer(tmp_path):
    from transformers import BertTokenizer

    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS.split(), "."]
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(tmp_path / "tok")
    return str(tmp_path / "tok")


@pytest.fixture
def corpus(command, tmp_path):
    """Runs the command with its output in a folder of the test; returns that."""
    pytest.importorskip("apache_beam")

    def call(*arguments, output="corpus"):
        command(prepare, "corpus", "--output", tmp_path / output, *arguments)
        return tmp_path / output

    return call


def expected_sentences(documents: str) -> list[str]:
    """The distinct kept sentences of all documents, by hash."""
    found = {}
    for document in open_source(documents).read():
        for outcome, sentence in examine(document, Rules()):
            if outcome == KEPT:
                letters = unicodedata.normalize("NFKC", sentence).lower().replace(" ", "")
                found[letters] = max(sentence, found.get(letters, ""))
    return sorted(
        found.values(),
        key=lambda sentence: hashlib.blake2b(sentence.encode(), digest_size=8).digest(),
    )


def text_of(folder: Path) -> list[str]:
    return [line for path in sorted(folder.glob("*.txt")) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("files", [1, 5])
def test_the_text_is_that_of_plain_python_and_its_counts_add_up(documents, corpus, files):
    folder = corpus("--input", documents, "--files", files)
    expected = expected_sentences(documents)
    assert text_of(folder) == expected and len(expected) > 80
    assert {path.name for path in folder.glob("*.txt")} <= {
        f"part-{number:05}-of-{files:05}.txt" for number in range(files)
    }
    counts = json.loads((folder / "manifest.json").read_text())["counts"]
    assert counts == {
        "documents": 47,
        "distinct": len(expected),
        "duplicates": 10,  # 2 in the second document, 5 in the two that come again, 3 in others
        "kept": len(expected) + 10,
        "too short": 1,  # Was it?
        "too long": 1,
        "few letters": 1,
    }
    assert sorted(path.name for path in folder.parent.iterdir()) == ["corpus", "documents"]


def test_documents_may_be_a_column(documents, corpus, tmp_path):
    table = tmp_path / "documents.jsonl"
    lines = open_source(documents).read()
    table.write_text("".join(json.dumps({"id": 1, "text": line}) + "\n" for line in lines))
    folder = corpus("--source", table, "--columns", "text")
    assert text_of(folder) == expected_sentences(documents)


def test_training_opens_the_cache_that_beam_made(documents, corpus, tokenizer, capsys, monkeypatch):
    claim = Output.claim

    def find_all_made(self):
        assert self.num_done() == self.num_parts, "Beam's workers made none"
        return claim(self)

    monkeypatch.setattr(Output, "claim", find_all_made)
    folder = corpus("--input", documents, "--tokenizer", tokenizer, "--max-len", 16)
    assert (
        f"--data.source '{folder}/*.txt' --data.cache-dir {folder}/cache" in capsys.readouterr().out
    )
    monkeypatch.undo()
    loaded = hf_tokenizer.load_tokenizer(tokenizer)
    (made,) = (folder / "cache").iterdir()
    reference = tokenize(open_source(f"{folder}/*.txt"), loaded, 16, folder.parent / "reference")
    (whole,) = (folder.parent / "reference").iterdir()
    assert made.name == whole.name
    assert {path.name: path.read_bytes() for path in made.iterdir()} == {
        path.name: path.read_bytes() for path in whole.iterdir()
    }
    batches = PackedBatches(TokenCache(made), DataConfig(batch_size=8), seed=0)
    assert batches.num_items == len(reference) == len(expected_sentences(documents))
    assert batches[3].mask.all()


def test_a_second_start_goes_on_after_the_text(documents, corpus, tokenizer):
    folder = corpus("--input", documents)
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    corpus("--input", documents, "--tokenizer", tokenizer)
    after = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    assert after.items() > before.items() and after.keys() - before.keys() == {"cache"}


def test_what_a_killed_start_left_is_cleared_away(documents, corpus, tmp_path):
    left = tmp_path / "corpus.partial"
    (left / "text").mkdir(parents=True)
    (left / "text" / "part-00009-of-00017.txt").write_text("left behind\n")
    assert text_of(corpus("--input", documents)) == expected_sentences(documents)
    assert not left.exists()


def test_bad_input_is_reported_in_one_line(documents, corpus, refused, tmp_path):
    (tmp_path / "bad.txt").write_bytes(b"fine\nnot \xff\n")
    (tmp_path / "dots.txt").write_text("...\n")
    (tmp_path / "cut.gz").write_bytes(gzip.compress(b"a line of text\n" * 50)[:40])
    (tmp_path / "pairs.tsv").write_text("one\ttwo\n")
    (tmp_path / "there").mkdir()
    corpus("--input", documents, output="made")
    new = tmp_path / "new"
    for arguments, problem in {
        (
            "--input",
            tmp_path / "bad.txt",
            "--output",
            new,
        ): "bad.txt:2: byte 5 of the line is not UTF",
        ("--input", tmp_path / "cut.gz", "--output", new): "cut.gz: cannot be read after line",
        (
            "--input",
            tmp_path / "dots.txt",
            "--output",
            new,
        ): "no sentence is kept: .*'too short': 1",
        ("--input", tmp_path / "pairs.tsv", "--output", new): "has two sentences a line",
        ("--input", tmp_path / "none*", "--output", new): "no file matches",
        ("--input", documents, "--output", new, "--files", 0): "--files 0: give at least 1",
        (
            *("--input", documents, "--output", new),
            *("--beam", "runner=FnApiRunner", "direct_num_worker=0"),
        ): "--beam direct_num_worker: Beam has no such option",
        ("--input", documents, "--output", new, "--beam", "runner=Flnk"): "--beam runner=Flnk: ",
        ("--input", documents, "--output", tmp_path / "there"): "not made by this command",
        ("--input", documents, "--output", tmp_path / "made", "--files", 3): "another files: use",
        ("--input", tmp_path / "dots.txt", "--output", tmp_path / "made"): "another input: use",
        (
            "--input",
            documents,
            "--output",
            tmp_path / "bad.txt" / "x",
        ): "x cannot be written: File exists",
    }.items():
        assert re.search(problem, refused(prepare, "corpus", *arguments))
        assert not new.exists()


def test_without_beam_one_line_says_what_to_install(documents, refused, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    arguments = ("--input", documents, "--output", tmp_path / "new")
    assert "pip install apache-beam" in refused(prepare, "corpus", *arguments)


def test_tokens_makes_the_cache_of_training(documents, command, tokenizer, tmp_path, capsys):
    arguments = ("--max-len", 16, "--cache-dir", tmp_path / "caches")
    command(prepare, "tokens", "--source", documents, "--tokenizer", tokenizer, *arguments)
    assert "47 sentences of" in capsys.readouterr().out
    (folder,) = (tmp_path / "caches").iterdir()
    tokenize(
        open_source(documents), hf_tokenizer.load_tokenizer(tokenizer), 16, tmp_path / "caches"
    )
    assert list((tmp_path / "caches").iterdir()) == [folder]
