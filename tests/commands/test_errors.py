"""How a command line ends, alone and as one of several."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jtcse_jax.errors import UserError
from jtcse_jax.runtime import failure
from jtcse_jax.runtime.failure import one_line_errors
from jtcse_jax.user_path import user_path


@pytest.mark.parametrize(
    ("error", "status", "said"),
    [
        (UserError("line 3 is bad: mend it."), 2, "error: line 3 is bad: mend it.\n"),
        (UserError("a\x1b[2J\nb: mend"), 2, "error: a\\x1b[2J\\nb: mend\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_bad_input_and_interrupts_are_one_line(error, status, said, capsys):
    @one_line_errors
    def main():
        raise error

    with pytest.raises(SystemExit) as exit:
        main()
    assert exit.value.code == status
    assert capsys.readouterr().err == said


def test_a_closed_pipe_is_no_traceback():
    program = """
from jtcse_jax.runtime.failure import one_line_errors
@one_line_errors
def main():
    for number in range(100_000):
        print(number)
main()
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "0\n"
    process.stdout.close()
    assert process.stderr.read() == ""
    process.stderr.close()
    assert process.wait(timeout=60) == 141


@pytest.mark.parametrize(
    ("error", "told_before", "status", "said"),
    [
        (UserError("no such file: name another."), None, 2, "error: no such file: name another.\n"),
        (UserError("a consequence"), 75, 75, ""),
        (ZeroDivisionError("a consequence"), 2, 2, ""),
        (BrokenPipeError(), None, 141, ""),
    ],
)
def test_of_several_processes_the_first_error_is_reported_and_decides(
    error, told_before, status, said, monkeypatch, capfd
):
    class Ended(BaseException):
        pass

    def end(status):
        raise Ended(status)

    told = []
    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(os, "dup2", lambda *_: None)
    monkeypatch.setattr(
        failure, "_notify_others", lambda status: told.append(status) or told_before
    )

    @one_line_errors
    def main():
        raise error

    with pytest.raises(Ended, match=f"^{status}$"):
        main()
    assert len(told) == 1 and capfd.readouterr().err == said


@pytest.mark.parametrize(
    ("name", "reason"),
    [("x" * 300, "too long"), ("circle/model", "symbolic links"), ("nul\0", "null")],
)
def test_a_path_that_cannot_even_be_looked_for_is_bad_input(tmp_path, monkeypatch, name, reason):
    monkeypatch.chdir(tmp_path)
    Path("circle").symlink_to("circle")
    with pytest.raises(UserError, match=f"cannot be used .*{reason}.*give another"):
        user_path(name)
    assert user_path("absent/model") == Path("absent/model")
