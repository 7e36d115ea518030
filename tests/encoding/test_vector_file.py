"""The file of vectors: whole or partial, one process or several, full disks."""

import errno
import json
import multiprocessing
import os
import shutil
import signal
import tempfile

import numpy as np
import pytest

from jtcse_jax.encoding import vector_file
from jtcse_jax.encoding.vector_file import VectorFile
from jtcse_jax.errors import UserError

ROWS, WIDTH, BLOCK = 23, 3, 5
VECTORS = np.random.default_rng(0).normal(size=(ROWS, WIDTH)).astype(np.float32)
SETTINGS = {"model": "m", "normalize": False}


def begin(folder, **settings):
    return VectorFile(folder / "out.npy", ROWS, WIDTH, BLOCK, SETTINGS | settings)


def write_blocks(file, *, limit=99, wait=False):
    written = []
    for number, _ in zip(file.claim(wait=wait), range(limit), strict=False):
        file.write(number, VECTORS[number * BLOCK : (number + 1) * BLOCK])
        written.append(number)
    return written


def test_finished_file_is_what_numpy_would_save(tmp_path):
    with begin(tmp_path) as file:
        assert write_blocks(file) == [0, 1, 2, 3, 4]
        assert file.rows_done == ROWS
        file.finish()
    np.save(tmp_path / "expected.npy", VECTORS)
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "expected.npy").read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out.npy", "expected.npy"}


def test_only_what_is_missing_is_written_again(tmp_path):
    with begin(tmp_path) as file:
        assert write_blocks(file, limit=2) == [0, 1]
        assert file.rows_done == 10
    # The third block was torn: half of it is there, and not marked.
    partial = tmp_path / "out.npy.partial" / "vectors.npy"
    with open(partial, "r+b") as torn:
        torn.seek(-(ROWS - 10) * WIDTH * 4, os.SEEK_END)
        torn.write(b"\xff" * 21)
    with begin(tmp_path) as file:
        assert file.rows_done == 10
        assert write_blocks(file) == [2, 3, 4]
        assert write_blocks(file, wait=True) == []
        file.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), VECTORS)


def test_partial_output_of_something_else_is_refused(tmp_path):
    with begin(tmp_path) as file:
        write_blocks(file, limit=1)
    partial = tmp_path / "out.npy.partial"
    with pytest.raises(UserError, match=f"{partial} was begun with another model and normalize"):
        begin(tmp_path, model="n", normalize=True)
    with pytest.raises(UserError, match="another block:"):
        VectorFile(tmp_path / "out.npy", ROWS, WIDTH, 6, SETTINGS)
    (partial / "settings.json").write_text("{")
    with pytest.raises(UserError, match=f"{partial} is damaged"):
        begin(tmp_path)


def in_child(work, *arguments):
    """A process in which `work` runs; forked, so that it need not import anything."""
    process = multiprocessing.get_context("fork").Process(target=work, args=arguments, daemon=True)
    process.start()
    return process


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_block_of_a_live_process_is_left_and_of_a_dead_one_taken(tmp_path):
    ready, ours = multiprocessing.Pipe()

    def other():
        with begin(tmp_path) as file:
            blocks = file.claim(wait=False)
            file.write(next(blocks), VECTORS[:BLOCK])
            next(blocks)  # block 1: claimed, and never written
            ours.send("claimed")
            signal.pause()

    process = in_child(other)
    assert ready.recv() == "claimed"
    with begin(tmp_path) as file:
        assert write_blocks(file) == [2, 3, 4]
        process.kill()
        assert write_blocks(file, wait=True) == [1]
        process.join()
        file.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), VECTORS)


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_many_processes_at_once_write_every_block_once(tmp_path):
    counts = multiprocessing.get_context("fork").Array("i", 5)
    start = multiprocessing.get_context("fork").Barrier(6)

    def worker():
        start.wait(60)
        with begin(tmp_path) as file:
            for wait in (False, True):
                for number in write_blocks(file, wait=wait):
                    with counts.get_lock():
                        counts[number] += 1
            assert file.rows_done == ROWS
            file.finish()

    for process in [in_child(worker) for _ in range(6)]:
        process.join(60)
        # One that comes when all is done says so; none has another reason to fail.
        assert process.exitcode in (0, 1)
    assert list(counts) == [1] * 5
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), VECTORS)
    assert {path.name for path in tmp_path.iterdir()} == {"out.npy"}


def test_a_process_that_comes_at_the_end_may_remove_the_folder_first(tmp_path, monkeypatch):
    real = tempfile.mkdtemp

    def mkdtemp(**place):
        shutil.rmtree(tmp_path / "out.npy.partial")
        return real(**place)

    with begin(tmp_path) as file:
        write_blocks(file)
        monkeypatch.setattr(vector_file.tempfile, "mkdtemp", mkdtemp)
        file.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), VECTORS)
    assert [path.name for path in tmp_path.iterdir()] == ["out.npy"]


def test_full_disk_keeps_and_names_what_is_done(tmp_path, monkeypatch):
    real = os.pwrite

    def full(descriptor, data, offset):
        if len(data) > 1 and offset > 128 + 2 * BLOCK * WIDTH * 4:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data[:25], offset)  # a disk may take a part

    with begin(tmp_path) as file:
        monkeypatch.setattr(vector_file.os, "pwrite", full)
        with pytest.raises(UserError) as error:
            write_blocks(file)
    said = str(error.value)
    assert "No space left on device" in said and "\n" not in said
    assert f"Finished vectors are in {tmp_path / 'out.npy.partial'}" in said
    monkeypatch.undo()
    with begin(tmp_path) as file:
        assert file.rows_done == 10
        assert write_blocks(file) == [2, 3, 4]
        file.finish()
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), VECTORS)


def test_disk_that_is_too_small_is_refused_before_the_work(tmp_path):
    rows = 10**15
    with pytest.raises(UserError, match=r"needs 12,000,000\.00 GB, but only .* GB are free there"):
        VectorFile(tmp_path / "out.npy", rows, WIDTH, rows, SETTINGS)
    assert not list(tmp_path.iterdir())


def test_place_that_cannot_be_written_is_refused(tmp_path, monkeypatch):
    (tmp_path / "out.npy").write_text("precious")
    with pytest.raises(UserError, match="exists already"):
        begin(tmp_path)
    with pytest.raises(UserError, match=f"there is no folder {tmp_path / 'none'}"):
        begin(tmp_path / "none")

    def read_only(**_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(vector_file.tempfile, "TemporaryFile", read_only)
    with pytest.raises(UserError, match="Read-only file system; choose another place"):
        begin(tmp_path / "..")


def test_file_that_appears_meanwhile_is_not_replaced(tmp_path):
    with begin(tmp_path) as file:
        write_blocks(file)
        (tmp_path / "out.npy").write_text("precious")
        with pytest.raises(UserError, match="appeared meanwhile; ours is .*vectors.npy"):
            file.finish()
    assert (tmp_path / "out.npy").read_text() == "precious"
    saved = np.load(tmp_path / "out.npy.partial" / "vectors.npy")
    np.testing.assert_array_equal(saved, VECTORS)


def test_settings_are_readable(tmp_path):
    begin(tmp_path).__exit__()
    settings = json.loads((tmp_path / "out.npy.partial" / "settings.json").read_text())
    assert settings == SETTINGS | {"rows": ROWS, "width": WIDTH, "block": BLOCK}


def test_block_of_another_size_is_a_mistake(tmp_path):
    with begin(tmp_path) as file, pytest.raises(ValueError, match="block 4 has vectors"):
        file.write(4, VECTORS[:BLOCK])
