"""Shards of a source, and token caches that several processes make at once, across kills."""

import contextlib
import errno
import fcntl
import gzip
import multiprocessing
import os
import resource
import signal
import threading
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from transformers import BertTokenizer

from jtcse_jax.data import text_files
from jtcse_jax.data.sources import Source, open_source
from jtcse_jax.data.tokens import tokenize
from jtcse_jax.errors import UserError
from jtcse_jax.runtime.output import Output

WORDS = "a cat sat on the mat and saw two dogs run far away from it".split()
FULL = r"caches/.* cannot be written: .*too large; .* free space there"
FORK = multiprocessing.get_context("fork")


@pytest.fixture
def tokenizer():
    vocab = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    return BertTokenizer(vocab={word: i for i, word in enumerate(vocab)})


@pytest.fixture
def text(tmp_path, monkeypatch):
    """Two files of 60 lines and a blank one each, in about 20 shards."""
    monkeypatch.setattr(text_files, "_PART_BYTES", 200)
    for name in ("one.txt", "two.txt"):
        lines = [" ".join(WORDS[: 1 + i % 14]) for i in range(60)]
        (tmp_path / name).write_text("\n".join([*lines[:30], "", *lines[30:]]))
    return str(tmp_path / "*.txt")


def files_of(cache_dir: Path) -> dict[str, bytes]:
    """The content of the one cache in a folder, in which nothing else is left."""
    (folder,) = cache_dir.iterdir()
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def whole(text, tokenizer, tmp_path, monkeypatch):
    """What one process makes of the text in one part a file."""
    with monkeypatch.context() as patch:
        patch.setattr(text_files, "_PART_BYTES", 2**20)
        source = open_source(text)
        assert source.num_shards == 2
        tokenize(source, tokenizer, 16, tmp_path / "whole")
    return files_of(tmp_path / "whole")


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.text("ab é\r\u2028\x0b", max_size=9), max_size=12),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
)
def test_the_parts_of_a_file_hold_its_lines_once_in_order(tmp_path_factory, lines, size, mark, end):
    content = "\ufeff" * mark + "\n".join(lines) + "\n" * end
    assume(content)
    path = tmp_path_factory.getbasetemp() / "lines.txt"
    path.write_text(content, encoding="utf-8", newline="")
    expected = content.removesuffix("\n").split("\n")
    expected[0] = expected[0].removeprefix("\ufeff")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(text_files, "_PART_BYTES", size)
        parts = text_files.parts(path)
    assert len(parts) == -(-path.stat().st_size // size)
    found = [line.removesuffix("\n") for part in parts for line in text_files.lines(path, part)]
    assert found == expected


def test_errors_name_the_line_of_the_file_in_whichever_part_it_is(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_PART_BYTES", 7)
    for bad in (0, 1, 17, 39):
        lines = [b"some text"] * 40
        lines[bad] = b"some \xff"
        (tmp_path / "bad.txt").write_bytes(b"\n".join(lines))
        with pytest.raises(UserError, match=rf"bad.txt:{bad + 1}: byte 6 of the line"):
            list(open_source(str(tmp_path / "bad.txt")).read())
        rows = ["one\ttwo"] * 40
        rows[bad] = "one\t"
        (tmp_path / "bad.tsv").write_text("\n".join(rows))
        with pytest.raises(UserError, match=rf"bad.tsv:{bad + 1}: an empty column"):
            list(open_source(str(tmp_path / "bad.tsv")).read())


def test_a_packed_file_is_one_shard(tmp_path, monkeypatch):
    monkeypatch.setattr(text_files, "_PART_BYTES", 4)
    with gzip.open(tmp_path / "text.gz", "wb") as file:
        file.write(b"one\n\ntwo\nthree\n")
    source = open_source(str(tmp_path / "text.gz"))
    assert source.num_shards == 1
    assert list(source.read_shard(0)) == ["one", "two", "three"] and source.blank == 1


def test_a_cache_does_not_depend_on_how_it_was_divided(text, whole, tokenizer, tmp_path):
    source = open_source(text)
    assert source.num_shards > 15
    tokenize(source, tokenizer, 16, tmp_path / "parts")
    assert files_of(tmp_path / "parts") == whole


def test_processes_share_the_work_and_make_the_same(text, whole, tokenizer, tmp_path, reads):
    def work():
        tokenize(open_source(text), tokenizer, 16, tmp_path / "shared", progress=False)

    assert run(work, work, work) == [0, 0, 0]
    assert files_of(tmp_path / "shared") == whole
    assert set(reads.counts().values()) == {1}
    assert len(reads.processes()) > 1


@pytest.mark.parametrize("method", ["begin", "lock", "last_step"])
def test_nothing_is_read_again_after_another_finished_in_between(
    text, whole, tokenizer, tmp_path, reads, monkeypatch, method
):
    original = getattr(Output, method)

    def late(*arguments, **keywords):
        monkeypatch.setattr(Output, method, original)
        tokenize(open_source(text), tokenizer, 16, tmp_path / "late")
        return original(*arguments, **keywords)

    monkeypatch.setattr(Output, method, late)
    tokenize(open_source(text), tokenizer, 16, tmp_path / "late")
    assert files_of(tmp_path / "late") == whole
    assert set(reads.counts().values()) == {1}


def test_an_error_of_the_disk_leaves_what_was_made(
    text, whole, tokenizer, tmp_path, reads, monkeypatch
):
    read_shard = Source.read_shard

    def fail_at_six(self, number):
        if number == 6:
            error = OSError(errno.EIO, "Input/output error")
            raise UserError("one.txt: cannot be read") from error
        return read_shard(self, number)

    with monkeypatch.context() as patch:
        patch.setattr(Source, "read_shard", fail_at_six)
        with pytest.raises(UserError, match="cannot be read"):
            tokenize(open_source(text), tokenizer, 16, tmp_path / "disk")
    tokenize(open_source(text), tokenizer, 16, tmp_path / "disk")
    assert files_of(tmp_path / "disk") == whole
    assert set(reads.counts().values()) == {1}


def test_after_a_kill_nothing_is_lost_and_only_what_was_at_hand_repeated(
    text, whole, tokenizer, tmp_path, reads
):
    def work():
        tokenize(open_source(text), tokenizer, 16, tmp_path / "killed", progress=False)

    reads.kill_in(6)
    assert run(work) == [-signal.SIGKILL]
    assert reads.counts() == {number: 1 for number in range(7)}
    assert [path.suffix for path in (tmp_path / "killed").iterdir()] == [".partial"]
    reads.kill_in(None)
    assert run(work) == [0]
    assert files_of(tmp_path / "killed") == whole
    assert reads.counts() == {n: 1 + (n == 6) for n in range(open_source(text).num_shards)}


def test_others_take_over_from_one_that_is_killed(text, whole, tokenizer, tmp_path, reads):
    def killed():
        reads.kill_in(0)
        work()

    def work():
        tokenize(open_source(text), tokenizer, 16, tmp_path / "taken", progress=False)

    codes = run(killed, work)
    assert codes[1] == 0 and codes[0] in (0, -signal.SIGKILL)
    assert files_of(tmp_path / "taken") == whole


@contextlib.contextmanager
def full_disk(limit):
    """A limit on the size of files is to a writer what a full disk is."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


@pytest.mark.parametrize("limit", [100, 1000, 60_000])
def test_a_full_disk_is_reported_and_the_same_command_goes_on(tmp_path, tokenizer, limit):
    (tmp_path / "text.txt").write_text("a cat sat on the mat\n" * 10_000)
    source = open_source(str(tmp_path / "text.txt"))
    with full_disk(limit), pytest.raises(UserError, match=FULL):
        tokenize(source, tokenizer, 16, tmp_path / "caches")
    tokenize(source, tokenizer, 16, tmp_path / "caches")
    tokenize(source, tokenizer, 16, tmp_path / "other")
    assert files_of(tmp_path / "caches") == files_of(tmp_path / "other")


def test_where_files_cannot_be_locked_the_work_is_done_all_the_same(
    text, whole, tokenizer, tmp_path, monkeypatch
):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    def work():
        tokenize(open_source(text), tokenizer, 16, tmp_path / "unlocked", progress=False)

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert run(work, work) == [0, 0]
    assert files_of(tmp_path / "unlocked") == whole


def test_an_error_in_a_late_part_leaves_nothing_and_is_reported_by_all(
    tmp_path, tokenizer, monkeypatch
):
    monkeypatch.setattr(text_files, "_PART_BYTES", 100)
    (tmp_path / "bad.txt").write_bytes(b"a cat sat\n" * 90 + b"the \xff\n" + b"a dog\n" * 40)
    said = tmp_path / "said"
    said.mkdir()

    def work():
        try:
            tokenize(open_source(str(tmp_path / "bad.txt")), tokenizer, 16, tmp_path / "caches")
        except UserError as error:
            (said / str(os.getpid())).write_text(str(error))

    assert run(work, work) == [0, 0]
    messages = {path.read_text() for path in said.iterdir()}
    assert len(list(said.iterdir())) == 2 and len(messages) == 1
    assert "bad.txt:91: byte 5 of the line" in messages.pop()
    assert list((tmp_path / "caches").iterdir()) == []


def run(*works) -> list[int]:
    """Exit statuses of processes that begin together."""
    together = FORK.Barrier(len(works))

    def begin(work):
        together.wait()
        work()

    processes = [FORK.Process(target=begin, args=(work,)) for work in works]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=300)
        assert process.exitcode is not None
    return [process.exitcode for process in processes]


class Reads:
    """Writes down which process read which shard; may kill one in the middle of a shard."""

    def __init__(self, path: Path):
        self._path = path
        self._fatal = None

    def note(self, number: int) -> None:
        with open(self._path, "a") as file:
            file.write(f"{os.getpid()} {number}\n")
        # A process that takes a shard in no time would leave none to the others.
        threading.Event().wait(0.02)

    def kill_in(self, number: int | None) -> None:
        self._fatal = number

    def maybe_die(self, number: int) -> None:
        if number == self._fatal:
            os.kill(os.getpid(), signal.SIGKILL)

    def counts(self) -> Counter:
        return Counter(int(number) for _, number in self._lines())

    def processes(self) -> set[str]:
        return {process for process, _ in self._lines()}

    def _lines(self) -> list[list[str]]:
        return [line.split() for line in self._path.read_text().splitlines()]


@pytest.fixture
def reads(tmp_path, monkeypatch, whole):
    log = Reads(tmp_path / "reads")
    read_shard = Source.read_shard

    def read_and_note(self, number):
        log.note(number)
        for sentence in read_shard(self, number):
            yield sentence
            log.maybe_die(number)

    monkeypatch.setattr(Source, "read_shard", read_and_note)
    return log
