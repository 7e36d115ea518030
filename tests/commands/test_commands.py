"""The command lines that use a model, through `sys.argv`."""

import re

import numpy as np
import pytest
from tiny_models import relative_files, some_sentences, tiny_model, write_run, write_senteval

from jtcse_jax import encode, evaluate, export
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.store import exported, saved_model


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A workdir of two towers; step 2 is the best, step 3 the newest."""
    folder = tmp_path_factory.mktemp("commands") / "run"
    return write_run(folder, tiny_model(2), {2: 0.6, 3: 0.4})


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    """A file of 20 lines without blank ones."""
    path = tmp_path_factory.mktemp("text") / "sentences.txt"
    path.write_text("".join(f"{line} the dog\n" for line in some_sentences(20)))
    return path


def test_encode_writes_the_vectors_of_the_lines(command, run, text, tmp_path, capsys):
    command(encode, "--model", run, "--input", text, "--output", tmp_path / "vectors.npy")
    said = capsys.readouterr().err
    assert "step 2 (best by dev score)" in said and "20 vectors of 16" in said
    vectors = np.load(tmp_path / "vectors.npy")
    lines = text.read_text().splitlines()
    np.testing.assert_array_equal(vectors, SentenceEncoder.load(run).encode(lines))
    assert vectors.dtype == np.float32


def test_encode_takes_the_asked_step_pooling_and_length(command, run, text, tmp_path):
    output = tmp_path / "vectors.npy"
    chosen = ("--step", "3", "--pooling", "mean", "--max-len", "9", "--normalize")
    command(encode, "--model", run, "--input", text, "--output", output, *chosen)
    encoder = SentenceEncoder.load(run, step=3, pooling="mean", max_len=9)
    expected = encoder.encode(text.read_text().splitlines(), normalize_embeddings=True)
    np.testing.assert_array_equal(np.load(output), expected)


def test_encode_refuses_what_would_shift_lines(refused, run, text, tmp_path):
    holes = tmp_path / "holes.txt"
    holes.write_text("one\n\ntwo\n \n")
    output = tmp_path / "vectors.npy"
    said = refused(encode, "--model", run, "--input", holes, "--output", output)
    assert f"{holes} has blank lines or empty records (2)" in said and not output.exists()
    pairs = tmp_path / "pairs.tsv"
    pairs.write_text("one\ttwo\n")
    said = refused(encode, "--model", run, "--input", pairs, "--output", output)
    assert f"{pairs} has two sentences a line" in said and not output.exists()


def test_encode_refuses_places_it_cannot_write(refused, run, text, tmp_path):
    (tmp_path / "there.npy").write_text("precious")
    said = refused(encode, "--model", run, "--input", text, "--output", tmp_path / "there.npy")
    assert "exists already" in said and (tmp_path / "there.npy").read_text() == "precious"
    nowhere = tmp_path / "none" / "vectors.npy"
    said = refused(encode, "--model", run, "--input", text, "--output", nowhere)
    assert f"--output {nowhere}: " in said


@pytest.mark.parametrize(
    ("module", "rest"),
    [
        (encode, ("--input", "{text}", "--output", "{folder}/vectors.npy")),
        (evaluate, ("--sts", "{folder}/downstream/STS")),
        (export, ("--output", "{folder}/exported")),
    ],
)
def test_model_that_is_not_there_is_one_line(refused, text, tmp_path, module, rest):
    write_senteval(tmp_path / "downstream")
    rest = [word.format(text=text, folder=tmp_path) for word in rest]
    said = refused(module, "--model", tmp_path / "none", *rest)
    assert f"{tmp_path / 'none'} does not exist" in said


def test_step_that_is_not_there_is_one_line(refused, run, tmp_path):
    said = refused(export, "--model", run, "--output", tmp_path / "new", "--step", "9")
    assert "step 9" in said and not (tmp_path / "new").exists()


def test_export_writes_the_folders_of_the_best_step(command, run, tmp_path, capsys):
    command(export, "--model", run, "--output", tmp_path / "new")
    assert capsys.readouterr().out == f"{run}, step 2 (best by dev score) -> {tmp_path / 'new'}\n"
    exported.export(saved_model.load(run, step=2), tmp_path / "expected")
    assert relative_files(tmp_path / "new") == relative_files(tmp_path / "expected")
    sentences = some_sentences(5)
    np.testing.assert_array_equal(
        SentenceEncoder.load(tmp_path / "new").encode(sentences),
        SentenceEncoder.load(run, step=2).encode(sentences),
    )


def test_export_into_what_is_there_is_one_line(refused, run, tmp_path):
    (tmp_path / "file").write_text("")
    assert "is not empty" in refused(export, "--model", run, "--output", tmp_path)


@pytest.mark.parametrize("module", [encode, evaluate, export])
def test_missing_argument_is_named(command, capsys, module):
    with pytest.raises(SystemExit) as exit:
        command(module, "--pooling", "first")
    assert exit.value.code == 2
    # In a frame whose width, and so line ends, depend on the terminal.
    said = set(re.findall(r"\w+", capsys.readouterr().err))
    assert {"pooling", "first", "cls", "mean"} <= said
    with pytest.raises(SystemExit) as exit:
        command(module)
    assert exit.value.code == 2 and "--model" in capsys.readouterr().err
