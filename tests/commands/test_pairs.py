"""`jtcse_jax.pairs` writes what `SentenceEncoder.pairs` finds, and resumes."""

import numpy as np
import pytest
from tiny_models import some_sentences, tiny_model

from jtcse_jax import encode, pairs
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.encoding.vector_file import VectorFile
from jtcse_jax.store import exported

SENTENCES = list(dict.fromkeys(some_sentences(50, longest=9)))
SENTENCES = [sentence for sentence in SENTENCES if sentence][:40]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    exported.export(tiny_model(2), folder / "model")
    (folder / "text.txt").write_text("\n".join(SENTENCES))
    return folder


@pytest.fixture
def arguments(folder, tmp_path):
    """Those of a command with a model, and without one."""
    text = ("--input", folder / "text.txt", "--output", tmp_path / "pairs.tsv")
    return (*text, "--model", folder / "model", "--top", 25), (*text, "--top", 25)


def read(path):
    lines = [line.split("\t") for line in path.read_text().removesuffix("\n").split("\n")]
    for _, *sentences, one, other in lines:
        assert [SENTENCES[int(one) - 1], SENTENCES[int(other) - 1]] == sentences
    return [(float(cosine), first, second) for cosine, first, second, *_ in lines]


def test_lines_are_the_pairs_of_the_encoder(command, arguments, folder, tmp_path, capsys):
    command(pairs, *arguments[0])
    embed = SentenceEncoder.load(folder / "model")
    embed.build_index(SENTENCES)
    expected = [(pair.score, *pair.sentences) for pair in embed.pairs(25)]
    written = read(tmp_path / "pairs.tsv")
    assert [pair[1:] for pair in written] == [pair[1:] for pair in expected]
    assert [pair[0] for pair in written] == pytest.approx([pair[0] for pair in expected], abs=1e-6)
    said = capsys.readouterr().err
    assert "pairs.tsv: 25 pairs (the limit --top 25" in said and "40/40" in said
    assert [path.name for path in tmp_path.iterdir()] == ["pairs.tsv"]


def test_vectors_of_encode_need_no_model(command, arguments, folder, tmp_path):
    command(pairs, *arguments[0])
    expected = (tmp_path / "pairs.tsv").rename(tmp_path / "expected.tsv").read_bytes()
    vectors = tmp_path / "vectors.npy"
    model = ("--model", folder / "model", "--input", folder / "text.txt")
    command(encode, *model, "--output", vectors)
    command(pairs, *arguments[1], "--vectors", vectors)
    assert (tmp_path / "pairs.tsv").read_bytes() == expected
    least = read(tmp_path / "pairs.tsv")[7][0] - 1e-6
    some = ("--output", tmp_path / "some.tsv", "--threshold", least)
    command(pairs, *arguments[1], "--vectors", vectors, *some)
    assert read(tmp_path / "some.tsv") == read(tmp_path / "pairs.tsv")[:8]


def test_stopped_command_resumes_to_the_same_pairs(command, arguments, tmp_path, monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK", 16)
    command(pairs, *arguments[0])
    whole = read((tmp_path / "pairs.tsv").rename(tmp_path / "whole.tsv"))
    monkeypatch.setattr(pairs, "_PART", 9)
    write, best, left = VectorFile.write, pairs.best_pairs, iter([1, 1, 0, 1, 1, 1, 0])
    rows = []

    def until_stopped(function):
        def call(*arguments, **options):
            if not next(left, 1):
                raise Stopped
            if function is best:
                rows.append(options["rows"].start)
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(VectorFile, "write", until_stopped(write))
    monkeypatch.setattr(pairs, "best_pairs", until_stopped(best))
    for _ in range(2):  # stopped while it writes vectors, then while it compares them
        with pytest.raises(Stopped):
            command(pairs, *arguments[0])
        assert not (tmp_path / "pairs.tsv").exists()
    assert rows == [0, 9]
    command(pairs, *arguments[0])
    assert rows == [0, 9, 18, 27, 36]
    written = read(tmp_path / "pairs.tsv")
    assert [pair[1:] for pair in written] == [pair[1:] for pair in whole]
    assert [pair[0] for pair in written] == pytest.approx([pair[0] for pair in whole], abs=2e-6)


def test_backends_of_faiss_find_the_pairs_of_neighbours(
    command, arguments, folder, tmp_path, monkeypatch
):
    pytest.importorskip("faiss", reason="faiss is not installed")
    command(pairs, *arguments[0])
    expected = read((tmp_path / "pairs.tsv").rename(tmp_path / "exact.tsv"))
    monkeypatch.setattr(pairs, "_PART", 9)
    find, made = pairs.near_pairs, []

    def stop_once(index, *rest, **options):
        made.append(id(index))
        if len(made) == 3:
            raise Stopped
        return find(index, *rest, **options)

    monkeypatch.setattr(pairs, "near_pairs", stop_once)
    with pytest.raises(Stopped):
        command(pairs, *arguments[0], "--backend", "hnsw")
    assert (tmp_path / "pairs.tsv.partial" / "index.faiss").is_file()
    command(pairs, *arguments[0], "--backend", "hnsw")
    assert len(made) == 6  # two of five parts were done before
    written = read(tmp_path / "pairs.tsv")  # each of the 40 sentences has fewer than 100 others
    assert [pair[1:] for pair in written] == [pair[1:] for pair in expected]
    assert [pair[0] for pair in written] == pytest.approx([pair[0] for pair in expected], abs=2e-6)
    assert {path.name for path in tmp_path.iterdir()} == {"pairs.tsv", "exact.tsv"}


class Stopped(Exception):
    """Stands for what ends a run in the middle."""


def test_what_does_not_fit_is_one_line(refused, arguments, folder, tmp_path):
    with_model, without = arguments
    assert "--top 0" in refused(pairs, *with_model, "--top", 0)
    assert "--model" in refused(pairs, *without)
    np.save(tmp_path / "vectors.npy", np.zeros((39, 4), np.float32))
    vectors = ("--vectors", tmp_path / "vectors.npy")
    assert "vectors.npy has 39 vectors" in refused(pairs, *without, *vectors)
    assert "--model" in refused(pairs, *with_model, *vectors)
    assert "text.txt" in refused(pairs, *without, "--vectors", folder / "text.txt")
    (tmp_path / "gap.txt").write_text("a\n\nb\n")
    gap = ("--input", tmp_path / "gap.txt", "--output", tmp_path / "gap.tsv")
    assert "gap.txt" in refused(pairs, *vectors, *gap)
    assert "pairs.txt" in refused(pairs, *with_model, "--output", tmp_path / "pairs.txt")
    assert {path.name for path in tmp_path.iterdir()} == {"vectors.npy", "gap.txt"}
    (tmp_path / "pairs.tsv").touch()
    assert "pairs.tsv" in refused(pairs, *with_model)
