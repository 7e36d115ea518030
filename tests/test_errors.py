"""What a command line does with the three ways it is made to stop."""

import subprocess
import sys

import pytest

from jtcse_jax.errors import UserError, one_line_errors


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
from jtcse_jax.errors import one_line_errors
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
