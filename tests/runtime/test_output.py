"""An output made in parts: whole or not there, whoever is killed, by one process or several."""

import contextlib
import errno
import multiprocessing
import os
import signal

import pytest

from jtcse_jax.errors import UserError
from jtcse_jax.runtime.output import Gone, Output

PARTS = 5
WHOLE = b"".join(b"part %d\n" % number for number in range(PARTS))
SETTINGS = {"model": "m", "beams": 4}
FORK = multiprocessing.get_context("fork")

pytestmark = [
    pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning"),
    pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning"),
]


@pytest.fixture
def output(tmp_path):
    return Output(tmp_path / "out", PARTS)


def make_part(output: Output, number: int) -> None:
    with output.new_file(f"{output.part(number)}.txt") as file:
        file.write(b"part %d\n" % number)
    output.mark(number, {"lines": 1})


def make(output: Output, limit: int = 99, told=lambda number: None) -> list[int]:
    """Makes the output, or stops after some parts; returns their numbers, and tells each."""
    output.begin(SETTINGS)
    made = []
    for number in output.claim():
        if len(made) == limit:
            return made
        make_part(output, number)
        told(number)
        made.append(number)
    with output.last_step() as ours:
        if ours:
            assert output.sums() == {"lines": PARTS}
            with output.aside() as whole:
                output.join("txt", whole)
                output.publish(whole)
    return made


def in_child(work):
    """A process in which `work` runs; forked, so that it need not import anything."""
    process = FORK.Process(target=work, daemon=True)
    process.start()
    return process


def test_whole_output_alone_remains(output, tmp_path):
    assert make(output) == [0, 1, 2, 3, 4]
    assert output.path.read_bytes() == WHOLE
    assert os.listdir(tmp_path) == ["out"]
    assert not output.begin(SETTINGS) and os.listdir(tmp_path) == ["out"]


def test_only_missing_parts_are_made_again(output):
    assert make(output, 2) == [0, 1]
    assert not output.path.exists() and output.num_done() == 2
    assert make(output) == [2, 3, 4]
    assert output.path.read_bytes() == WHOLE


def test_parts_of_another_division_are_not_mixed_in(output):
    make(output, 2)
    assert Output(output.path, 7).num_done() == 0


def test_other_settings_are_refused(output):
    make(output, 2)
    with pytest.raises(UserError, match=r"out.partial was begun with another beams \(4, now 1\)"):
        output.begin(SETTINGS | {"beams": 1})
    (output.folder / "settings.json").write_text("{")
    with pytest.raises(UserError, match="settings.json is not valid JSON .*: delete .*out.partial"):
        output.begin(SETTINGS)


def test_file_with_an_error_is_not_there(output):
    output.begin()
    with pytest.raises(ZeroDivisionError), output.new_file("a") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert list(output.folder.iterdir()) == []


def test_output_that_appears_meanwhile_is_not_replaced(output):
    make(output, 3)
    output.path.write_text("precious")
    with pytest.raises(UserError, match=r"out appeared meanwhile; the new one is .*out.partial"):
        with output.last_step():
            output.publish(output.folder / "anything")
    assert output.path.read_text() == "precious" and output.num_done() == 3
    assert not output.begin(SETTINGS) and output.num_done() == 3


def test_remains_of_killed_processes_are_removed(output, tmp_path, monkeypatch):
    make(output, 2)
    with monkeypatch.context() as killed:
        killed.setattr("shutil.rmtree", lambda *_, **__: None)
        output.discard()
    assert len(os.listdir(tmp_path)) == 1 and not output.folder.exists()
    make(Output(tmp_path / "other", PARTS))
    assert os.listdir(tmp_path) == ["other"]
    # A folder that was left after the output was published, and then taken away.
    output.begin()
    (output.folder / "published").touch()
    assert make(output) == [0, 1, 2, 3, 4]
    assert output.path.read_bytes() == WHOLE


@pytest.mark.parametrize("size", [0, 3])
def test_full_disk_names_what_is_finished(output, largest_files, size):
    make(output, 2)
    with (
        largest_files(size),
        pytest.raises(UserError, match=r"File too large; .*out.partial") as error,
    ):
        make(output)
    assert "\n" not in str(error.value)
    assert make(output) == [2, 3, 4] and output.path.read_bytes() == WHOLE


def test_process_whose_folder_is_gone_is_told_to_start_again(output):
    output.begin()
    with pytest.raises(Gone, match="start again"), output.new_file("a"):
        output.discard()
    assert list(output.claim()) == []
    with output.last_step() as ours:
        assert not ours


def test_process_that_waited_while_another_published_has_nothing_to_do(output, monkeypatch):
    """The other one removes the folder after this one got its lock."""
    output.begin()
    lock = Output.lock

    @contextlib.contextmanager
    def late(self, name, *, wait=False):
        with lock(self, name, wait=wait) as ours:
            self.discard()
            yield ours

    monkeypatch.setattr(Output, "lock", late)
    with output.last_step() as ours:
        assert not ours
    with pytest.raises(Gone):
        output.sums()


def test_without_locks_it_works_with_a_warning(output, monkeypatch, caplog):
    import fcntl

    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    assert make(output) == [0, 1, 2, 3, 4] and output.path.read_bytes() == WHOLE
    assert "cannot be locked (No locks available)" in caplog.text


def test_part_of_a_live_process_is_left_and_of_a_dead_one_taken(output):
    ready, ours = multiprocessing.Pipe()

    def other():
        output.begin(SETTINGS)
        parts = output.claim()
        make_part(output, next(parts))
        next(parts)  # part 1: claimed, and never made
        ours.send("claimed")
        signal.pause()

    process = in_child(other)
    assert ready.recv() == "claimed"
    parts, made = output.claim(), []
    for number in parts:
        if number == 4:
            process.kill()
        make_part(output, number)
        made.append(number)
    assert made == [2, 3, 4, 1]


def test_many_processes_make_every_part_once(output, tmp_path):
    counts, start = FORK.Array("i", PARTS), FORK.Barrier(6)

    def count(number):
        with counts.get_lock():
            counts[number] += 1

    def worker():
        start.wait(60)
        make(output, told=count)

    for process in [in_child(worker) for _ in range(6)]:
        process.join(60)
        # One that comes when all is done may be told so; none has another reason to fail.
        assert process.exitcode in (0, 1)
    assert list(counts) == [1] * PARTS
    assert output.path.read_bytes() == WHOLE and os.listdir(tmp_path) == ["out"]
