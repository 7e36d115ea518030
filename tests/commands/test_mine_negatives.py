"""`augment mine-negatives` writes what `mining` finds, and resumes."""

import json
from collections import Counter

import numpy as np
import pytest
from tiny_models import some_sentences, tiny_model

from jtcse_jax import augment
from jtcse_jax.data.sources import open_source
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.encoding.vector_file import VectorFile
from jtcse_jax.store import exported

WORDS = [words for words in dict.fromkeys(some_sentences(120, longest=12)) if words][:90]
ANCHORS, POSITIVES, MORE = WORDS[:40], WORDS[40:80], WORDS[80:]
ANCHORS[5:10] = [ANCHORS[0]] * 5
PAIRS = list(zip(ANCHORS, POSITIVES, strict=True))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("mining")
    exported.export(tiny_model(1, pooling="mean"), folder / "model")
    (folder / "pairs.tsv").write_text("".join(f"{a}\t{p}\n" for a, p in PAIRS))
    (folder / "more.txt").write_text("\n".join(MORE))
    return folder


def read(path):
    """The lines under the header, as cells."""
    header, *lines = path.read_text().splitlines()
    assert header == "anchor\tpositive\tnegative"
    return [tuple(line.split("\t")) for line in lines]


@pytest.fixture
def mine(command, folder, tmp_path):
    """Runs the command; returns the triples of its output."""

    def call(*options, output="out.tsv"):
        start = ("mine-negatives", "--input", folder / "pairs.tsv", "--model", folder / "model")
        command(augment, *start, "--output", tmp_path / output, *options)
        return read(tmp_path / output)

    return call


def expected(encoder, more=(), count=1, margin=0.05, queries=lambda text: text):
    """The triples by a full sort of the cosines of each anchor."""
    texts = list(dict.fromkeys([*POSITIVES, *more]))
    vectors = encoder.encode(texts, normalize_embeddings=True)
    triples = []
    for anchor, positive in PAIRS:
        cosines = vectors @ encoder.encode(queries(anchor), normalize_embeddings=True)
        own = {p for a, p in PAIRS if a == anchor}
        least = min(cosines[texts.index(p)] for p in own)
        chosen = [
            texts[number]
            for number in np.argsort(-cosines, kind="stable")[: 100 + len(own)]
            if texts[number] not in {anchor, *own}
            and (margin is None or cosines[number] <= least - abs(least) * margin)
        ]
        triples += [(anchor, positive, negative) for negative in chosen[:count]]
    return triples


@pytest.fixture(scope="module")
def encoder(folder):
    return SentenceEncoder.load(folder / "model")


def test_each_pair_has_its_nearest_negatives_in_a_table(mine, encoder, tmp_path, capsys):
    triples = mine("--num-negatives", 2, "--relative-margin", "None")
    assert triples == expected(encoder, count=2, margin=None)
    source = open_source(str(tmp_path / "out.tsv"), ("anchor", "positive", "negative"))
    assert (source.views, list(source.read())) == (3, [text for each in triples for text in each])
    assert "out.tsv: 80 negatives for 40 of 40 pairs" in capsys.readouterr().err


def test_a_margin_leaves_pairs_without_negative_which_are_counted(mine, encoder, capsys):
    triples = mine("--relative-margin", 0.3)
    assert triples == expected(encoder, margin=0.3)
    found = Counter(triple[:2] for triple in triples)
    none = sum(pair not in found for pair in PAIRS)
    assert 0 < none < 40
    said = capsys.readouterr().err
    assert f"{40 - none} of 40 pairs" in said
    assert f"{none} pairs have no negative because of --relative-margin" in said


def test_a_corpus_adds_texts(mine, encoder, folder):
    more = ("--corpus", folder / "more.txt", "--num-negatives", 3)
    triples = mine(*more)
    assert triples == expected(encoder, more=MORE, count=3)
    assert {negative for *_, negative in triples} & set(MORE)


def test_tables_are_read_by_columns(mine, encoder, tmp_path):
    rows = [{"q": a, "d": f"{p}\t" if p else p, "x": 1} for a, p in PAIRS]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "more.csv").write_text("".join(f"{text}\n" for text in ["text", *MORE]))
    table = ("--input", tmp_path / "pairs.jsonl", "--columns", "q", "d")
    triples = mine(*table, "--corpus", tmp_path / "more.csv", "--corpus-column", "text")
    assert triples == expected(encoder, more=MORE)


def test_anchors_have_the_prompt_of_queries(command, folder, tmp_path, encoder):
    prompted = tmp_path / "prompted"
    exported.export(tiny_model(1, pooling="mean"), prompted)
    config = prompted / "config_sentence_transformers.json"
    settings = json.loads(config.read_text()) if config.exists() else {}
    config.write_text(json.dumps(settings | {"prompts": {"query": "old river "}}))
    start = ("mine-negatives", "--input", folder / "pairs.tsv", "--model", prompted)
    command(augment, *start, "--output", tmp_path / "out.tsv")
    triples = read(tmp_path / "out.tsv")
    assert triples == expected(encoder, queries=lambda text: f"old river {text}")
    assert triples != expected(encoder)


def test_a_backend_of_faiss_finds_the_same_among_few_texts(mine, encoder):
    pytest.importorskip("faiss", reason="faiss is not installed")
    assert mine("--backend", "hnsw") == expected(encoder)


def test_stopped_command_resumes_to_the_same_bytes(mine, encoder, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(augment, "_MINED_WINDOW", 11)
    monkeypatch.setattr(augment, "BLOCK", 16)
    assert mine(output="whole.tsv") == expected(encoder)
    write, find, left = VectorFile.write, augment.hard_negatives, iter([1, 1, 1, 1, 0, 1, 1, 1, 0])

    def until_stopped(function):
        def call(*arguments):
            if not next(left, 1):
                raise Stopped
            return function(*arguments)

        return call

    monkeypatch.setattr(VectorFile, "write", until_stopped(write))
    monkeypatch.setattr(augment, "hard_negatives", until_stopped(find))
    with pytest.raises(Stopped):  # while the corpus is encoded
        mine()
    with pytest.raises(Stopped):  # while the third part is mined
        mine()
    assert "document.npy.partial: 16 of 40 are done" in capsys.readouterr().err
    mine()
    assert "resuming after 11 of 40 pairs" in capsys.readouterr().err
    assert (tmp_path / "out.tsv").read_bytes() == (tmp_path / "whole.tsv").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out.tsv", "whole.tsv"}


class Stopped(Exception):
    """Stands for what ends a run in the middle."""


def test_what_does_not_fit_is_one_line(refused, folder, tmp_path):
    def said(*options):
        start = ("mine-negatives", "--input", folder / "pairs.tsv", "--model", folder / "model")
        return refused(augment, *start, "--output", tmp_path / "out.tsv", *options)

    assert "more.txt has one sentence a line" in said("--input", folder / "more.txt")
    assert "pairs.tsv has two sentences a line" in said("--corpus", folder / "pairs.tsv")
    assert "--range-max 3" in said("--range-max", 3, "--num-negatives", 4)
    assert "out.txt" in said("--output", tmp_path / "out.txt")
    assert not list(tmp_path.iterdir())
