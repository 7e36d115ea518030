"""The file of vectors: whole or partial, and full disks; `test_output` has the rest."""

import numpy as np
import pytest

from jtcse_jax.encoding import vector_file
from jtcse_jax.encoding.vector_file import VectorFile, kept_vectors
from jtcse_jax.errors import UserError

ROWS, WIDTH, BLOCK = 23, 3, 5
VECTORS = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
SETTINGS = {"model": "m", "normalize": False}


def begin(folder):
    return VectorFile(folder / "out.npy", ROWS, WIDTH, BLOCK, SETTINGS)


def write_blocks(file, *, limit=99):
    written = []
    for number, _ in zip(file.claim(), range(limit), strict=False):
        file.write(number, VECTORS[number * BLOCK : (number + 1) * BLOCK])
        written.append(number)
    return written


def test_finished_file_is_what_numpy_would_save(tmp_path):
    file = begin(tmp_path)
    assert write_blocks(file) == [0, 1, 2, 3, 4]
    assert file.rows_done == ROWS
    file.finish()
    np.save(tmp_path / "expected.npy", VECTORS)
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out.npy", "expected.npy"}


def test_only_what_is_missing_is_written_again(tmp_path):
    file = begin(tmp_path)
    assert write_blocks(file, limit=2) == [0, 1]
    assert file.rows_done == 10
    # The third block was torn: half of it is there, and not marked.
    with open(tmp_path / "out.npy.partial" / "vectors.npy", "ab") as torn:
        torn.write(b"\xff" * 21)
    file = begin(tmp_path)
    assert file.rows_done == 10
    assert write_blocks(file) == [2, 3, 4]
    file.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), VECTORS)


@pytest.mark.parametrize(("size", "done"), [(0, 0), (260, 10)])
def test_full_disk_keeps_and_names_what_is_done(tmp_path, largest_files, size, done):
    file = begin(tmp_path)
    with largest_files(size), pytest.raises(UserError, match="File too large; .*out.npy.partial"):
        write_blocks(file)
    file = begin(tmp_path)
    assert file.rows_done == done
    assert write_blocks(file) == list(range(done // BLOCK, 5))
    file.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), VECTORS)


def test_disk_that_is_too_small_is_refused_before_the_work(tmp_path):
    rows = 10**15
    with pytest.raises(UserError, match=r"needs 12,000,000\.00 GB, but only .* GB are free there"):
        VectorFile(tmp_path / "out.npy", rows, WIDTH, rows, SETTINGS)
    assert not list(tmp_path.iterdir())


def test_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    file = begin(tmp_path)
    write_blocks(file)
    (tmp_path / "out.npy").write_text("precious")
    with pytest.raises(UserError, match="appeared meanwhile; the new one is .*vectors.npy"):
        file.finish()
    assert (tmp_path / "out.npy").read_text() == "precious"
    saved = np.load(tmp_path / "out.npy.partial" / "vectors.npy")
    np.testing.assert_array_equal(saved, VECTORS)
    with pytest.raises(UserError, match="exists already"):
        begin(tmp_path)


def test_kept_vectors_are_made_once(tmp_path, monkeypatch):
    asked = []

    def encode(sentences, *, done):
        asked.append(sentences)
        done(len(sentences))
        return VECTORS[[int(sentence) for sentence in sentences]]

    texts = [str(number) for number in range(ROWS)]
    blocks = [texts[start : start + BLOCK] for start in range(0, ROWS, BLOCK)]
    arguments = (tmp_path / "out.npy", blocks, ROWS, WIDTH, BLOCK, encode)
    for _ in range(2):
        np.testing.assert_array_equal(kept_vectors(*arguments), VECTORS)
    assert asked == blocks

    class Late(VectorFile):
        """Another process completes the file just before this one begins it."""

        def __init__(self, path, *rest):
            (tmp_path / "whole.npy").rename(path)
            super().__init__(path, *rest)

    (tmp_path / "out.npy").rename(tmp_path / "whole.npy")
    monkeypatch.setattr(vector_file, "VectorFile", Late)
    np.testing.assert_array_equal(kept_vectors(*arguments), VECTORS)
    assert len(asked) == 5
