"""`jtcse_jax.encode` on files: the same vectors whatever is killed, and errors before the work."""

import gzip
import json
import os
import re
import subprocess
import sys
import tracemalloc

import numpy as np
import pytest
from processes import ROOT, WITHOUT_TORCH, end, start_python, wait_for
from tiny_models import some_sentences, tiny_model

from jtcse_jax import encode
from jtcse_jax.encode import Arguments
from jtcse_jax.encoding.encoder import SentenceEncoder
from jtcse_jax.encoding.vector_file import VectorFile
from jtcse_jax.errors import UserError
from jtcse_jax.store import exported

SENTENCES = [f"the dog {words}".strip() for words in some_sentences(50)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two models, an ensemble of them, and 50 lines of text, plain and compressed."""
    folder = tmp_path_factory.mktemp("encode")
    exported.export(tiny_model(2), folder / "two")
    exported.export(tiny_model(1, pooling="mean", serving_length=9), folder / "one")
    members = [{"model": "one", "weight": 0.3}, {"model": "two", "weight": 0.7}]
    (folder / "mix.json").write_text(json.dumps({"members": members}))
    (folder / "text.txt").write_text("\n".join(SENTENCES))
    with gzip.open(folder / "text.txt.gz", "wt") as file:
        file.write("\n".join(SENTENCES) + "\n")
    return folder


def run(folder, output, *, model="two", text="text.txt.gz", **options):
    options = {"batch_size": 8} | options
    arguments = Arguments(
        model=str(folder / model), input=str(folder / text), output=str(output), **options
    )
    encode.encode(arguments)
    return np.load(output)


@pytest.fixture
def stop_after(monkeypatch):
    """Makes the next run fail before it writes its n-th block; None lets it pass again."""
    real = VectorFile.write

    def after(count):
        left = iter(range(99 if count is None else count))

        def write(file, number, vectors):
            if next(left, None) is None:
                raise KeyboardInterrupt
            real(file, number, vectors)

        monkeypatch.setattr(VectorFile, "write", write)

    return after


@pytest.mark.parametrize("model", ["two", "mix.json"])
def test_rows_are_the_vectors_of_the_lines(folder, tmp_path, model, capsys):
    vectors = run(folder, tmp_path / "out.npy", model=model)
    encoder = SentenceEncoder.load(folder / model)
    np.testing.assert_array_equal(vectors, encoder.encode(SENTENCES, batch_size=8))
    assert vectors.dtype == np.float32
    said = capsys.readouterr().err
    assert "50 vectors of 16" in said and "50/50" in said
    if model == "mix.json":
        assert "0.3 * " in said


def test_options_are_those_of_the_encoder(folder, tmp_path):
    options = {"batch_size": 8, "truncate_dim": 5}
    vectors = run(folder, tmp_path / "out.npy", normalize=True, max_len=9, **options)
    expected = SentenceEncoder.load(folder / "two", max_len=9).encode(
        SENTENCES, normalize_embeddings=True, **options
    )
    np.testing.assert_array_equal(vectors, expected)


def test_products_in_bfloat16_are_close_to_those_in_float32(folder, tmp_path):
    exact = run(folder, tmp_path / "exact.npy")
    coarse = run(folder, tmp_path / "coarse.npy", compute_dtype="bfloat16")
    assert coarse.dtype == np.float32
    distance = np.linalg.norm(coarse - exact, axis=1) / np.linalg.norm(exact, axis=1)
    assert 1e-4 < distance.max() < 0.05  # bfloat16 keeps 8 bits, 0.004
    loaded = SentenceEncoder.load(folder / "two", compute_dtype="bfloat16")
    np.testing.assert_array_equal(coarse, loaded.encode(SENTENCES, batch_size=8))


def test_stopped_run_goes_on_to_the_same_bytes(folder, tmp_path, stop_after, monkeypatch, capsys):
    run(folder, tmp_path / "whole.npy")
    for blocks in (3, 0, 2):
        stop_after(blocks)
        with pytest.raises(KeyboardInterrupt):
            run(folder, tmp_path / "out.npy")
        assert not (tmp_path / "out.npy").exists()
    capsys.readouterr()
    stop_after(None)
    seen = []
    real = SentenceEncoder.encode_block
    monkeypatch.setattr(
        SentenceEncoder, "encode_block", lambda *a, **k: seen.append(len(a[1])) or real(*a, **k)
    )
    run(folder, tmp_path / "out.npy", text="text.txt.gz")
    assert seen == [8, 2]  # the two blocks that were not there
    assert "out.npy.partial: 40 of 50 are done" in capsys.readouterr().err
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_disk_that_fills_while_encoding_is_one_sentence(
    folder, tmp_path, small_disk, stop_after, capsys
):
    """And with room again it ends with the same bytes."""
    text = tmp_path / "long.txt"
    text.write_text("".join(f"the dog {words}\n" for words in some_sentences(1000)))
    output, others = small_disk / "out.npy", small_disk / "others"
    options = {"text": text, "batch_size": 100}
    run(folder, tmp_path / "whole.npy", **options)
    stop_after(2)
    with pytest.raises(KeyboardInterrupt):
        run(folder, output, **options)
    stop_after(None)
    with open(others, "wb", buffering=0) as file:
        with pytest.raises(OSError, match="No space left"):
            while True:
                file.write(bytes(4096))
        file.truncate(file.tell() - 3 * 4096)  # room for a block or two of 6,400 bytes, and a part
    with pytest.raises(UserError) as error:
        run(folder, output, **options)
    partial = f"{output}.partial"
    assert f"{output} cannot be written: No space left on device" in str(error.value)
    assert f"what is finished is in {partial}: " in str(error.value)
    assert not output.exists()
    others.unlink()
    capsys.readouterr()
    run(folder, output, **options)
    done = re.search(rf"{partial}: (\d+) of 1,000 are done", capsys.readouterr().err)
    assert int(done[1]) in (300, 400)
    assert output.read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_other_arguments_do_not_go_on(folder, tmp_path, stop_after):
    stop_after(1)
    with pytest.raises(KeyboardInterrupt):
        run(folder, tmp_path / "out.npy")
    stop_after(None)
    for option, said in (
        ({"normalize": True}, "normalize"),
        ({"model": "one"}, "model"),
        ({"max_len": 7}, "model"),
        ({"compute_dtype": "bfloat16"}, "model"),
        ({"text": "text.txt"}, "input"),  # not the same bytes
        ({"truncate_dim": 3}, "width"),
        ({"batch_size": 9}, "block"),
    ):
        with pytest.raises(UserError, match=rf"was begun with another .*{said} \("):
            run(folder, tmp_path / "out.npy", **option)


def test_memory_holds_one_block_whatever_the_size(folder, tmp_path, monkeypatch):
    """The text is never a list, and the vectors never an array, of more than a few blocks."""

    def without_model(self, block, **_):
        return np.full((len(block), 16), len(block[0]), np.float32)

    def traced_claim(file, real=VectorFile.claim):
        tracemalloc.start()
        return real(file)

    peaks = []

    def traced_finish(file, real=VectorFile.finish):
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        real(file)

    monkeypatch.setattr(SentenceEncoder, "encode_block", without_model)
    monkeypatch.setattr(VectorFile, "claim", traced_claim)
    monkeypatch.setattr(VectorFile, "finish", traced_finish)
    lines = 50_000
    (tmp_path / "big.txt").write_text("".join(f"the cat {i}\n" for i in range(lines)))
    vectors = run(folder, tmp_path / "out.npy", text=tmp_path / "big.txt", batch_size=500)
    assert vectors.shape == (lines, 16) and vectors[0, 0] == 9 and vectors[-1, 0] == 13
    assert peaks[0] < vectors.nbytes / 4


def test_a_column_of_a_table_is_encoded(folder, tmp_path):
    rows = [{"id": i, "text": sentence} for i, sentence in enumerate(SENTENCES)]
    (tmp_path / "text.jsonl").write_text("\n".join(map(json.dumps, rows)))
    run(folder, tmp_path / "lines.npy")
    run(folder, tmp_path / "table.npy", text=tmp_path / "text.jsonl", columns=("text",))
    assert (tmp_path / "lines.npy").read_bytes() == (tmp_path / "table.npy").read_bytes()


def test_vectors_are_not_written_under_the_name_of_another_format(folder, tmp_path):
    with pytest.raises(UserError, match="v.csv: .* ends in .npy"):
        run(folder, tmp_path / "v.csv")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["-", "/dev/stdin"])
def test_standard_input_is_encoded(folder, tmp_path, name):
    run(folder, tmp_path / "file.npy", text="text.txt")
    command = [sys.executable, "-m", "jtcse_jax.encode", "--model", str(folder / "two")]
    command += ["--source", name, "--output", str(tmp_path / "pipe.npy"), "--batch-size", "8"]
    text = (folder / "text.txt").read_bytes()
    environment = os.environ | {"PYTHONPATH": WITHOUT_TORCH}
    subprocess.run(command, cwd=ROOT, env=environment, input=text, check=True)
    assert (tmp_path / "pipe.npy").read_bytes() == (tmp_path / "file.npy").read_bytes()


def test_errors_of_the_text_come_before_the_model_is_read(folder, tmp_path):
    (tmp_path / "latin").write_bytes(b"one\n" * 70 + b"caf\xe9\n")
    (tmp_path / "holes").write_text("one\n\ntwo\n \n")
    for name, said in (("latin", r"latin:71: .*not UTF-8"), ("holes", r"blank lines .*\(2\)")):
        with pytest.raises(UserError, match=said):
            run(tmp_path, tmp_path / "out.npy", text=name, model="there is none")
    assert not list(tmp_path.glob("out*"))


def test_text_that_changes_meanwhile_is_noticed(folder, tmp_path, stop_after, monkeypatch):
    (tmp_path / "text.txt").write_text("\n".join(SENTENCES))
    real = encode.ensemble.load_members

    def load(*arguments, **options):
        (tmp_path / "text.txt").write_text("\n".join(SENTENCES[:20]))
        return real(*arguments, **options)

    monkeypatch.setattr(encode.ensemble, "load_members", load)
    with pytest.raises(UserError, match="text.txt changed while it was read"):
        run(folder, tmp_path / "out.npy", text=tmp_path / "text.txt")


def test_cut_sentences_are_counted_once_at_the_end(folder, tmp_path, caplog):
    run(folder, tmp_path / "out.npy", max_len=6)
    long = sum(len(sentence.split()) > 4 for sentence in SENTENCES)
    assert long > 20
    assert [record.message for record in caplog.records if "cut" in record.message] == [
        f"sentences cut at 6 tokens: {long}."
    ]


@pytest.mark.parametrize(
    ("option", "said"),
    [({"batch_size": 0}, "--batch-size 0"), ({"truncate_dim": 99}, "truncate_dim = 99: choose 1")],
)
def test_numbers_out_of_range_are_named(folder, tmp_path, option, said):
    with pytest.raises(UserError, match=said):
        run(folder, tmp_path / "out.npy", **option)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_two_processes_one_of_them_killed_write_the_same_bytes(folder, tmp_path):
    run(folder, tmp_path / "whole.npy", batch_size=4)
    command = ["-m", "jtcse_jax.encode", "--model", str(folder / "two"), "--batch-size", "4"]
    command += ["--input", str(folder / "text.txt.gz"), "--output", str(tmp_path / "out.npy")]
    devices = {"XLA_FLAGS": os.environ["XLA_FLAGS"]}  # as many as here
    killed, other = start_python(*command, **devices), start_python(*command, **devices)
    wait_for(tmp_path, "out.npy.partial/*.done", killed)
    killed.kill()
    killed.join()
    status, _, said = end(other)
    assert status == 0, said
    assert "50 vectors of 16" in said
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"whole.npy", "out.npy"}
