"""The errors that a user can fix or wait out; `runtime/failure.py` has how a command ends on them.

Exit statuses: 1 a crash, with its traceback; 2 bad input (starting again does not help); 75 stopped
on request with everything saved, or waiting for something in use (start again: EX_TEMPFAIL of
sysexits.h); 130 interrupted, by training with everything saved; 141 nobody reads the output.
"""

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path

CRASHED, BAD_INPUT, START_AGAIN, INTERRUPTED, NO_READER = 1, 2, 75, 130, 141


class UserError(Exception):
    """Bad input. The message is one sentence: what is wrong, where, and what to do about it."""

    status = BAD_INPUT


class InUse(UserError):
    """Another process uses what this one needs, and may release it later."""

    status = START_AGAIN


class Hung(UserError):
    """Something does not answer. It may do so later, and the process must end without waiting."""

    status = START_AGAIN


class Stopped(Exception):
    """The command was asked to stop and has saved its work; started again it resumes."""

    status = START_AGAIN


class Interrupted(Stopped):
    """The user asked, with Ctrl-C: no launcher may start it again."""

    status = INTERRUPTED


@contextlib.contextmanager
def writing(what: Path | str) -> Iterator[None]:
    """Turns an OSError in the body (full disk, no permission) into a UserError about `what`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error.strerror or error}.") from error


def check_counts(section: str, fields: object, names: Iterable[str]) -> None:
    """Raises UserError if one of the named fields is neither None nor at least 1."""
    for name in names:
        value = getattr(fields, name)
        if value is not None and value < 1:
            raise UserError(f"{section}{name} = {value}: use at least 1.")
