"""How a command ends other than well: in one line where the user can mend it, and in all processes.

Exit statuses: 1 a crash, with its traceback; 2 bad input (starting again does not help); 75 stopped
on request with everything saved, or kept from work (start again: EX_TEMPFAIL of sysexits.h); 130
interrupted; 141 nobody reads the output.
"""

import contextlib
import functools
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

CRASHED, BAD_INPUT, START_AGAIN, INTERRUPTED, NO_READER = 1, 2, 75, 130, 141


class UserError(Exception):
    """Bad input, said in one sentence: what is wrong, where, and what to do about it."""

    status = BAD_INPUT


class InUse(UserError):
    """Another process has what this one needs, and may leave it."""

    status = START_AGAIN


class Hung(UserError):
    """What does not answer may do so later, and cannot be waited for at the process's end."""

    status = START_AGAIN


class Stopped(Exception):
    """The command was asked to stop and has saved what it did; started again it goes on."""


@contextlib.contextmanager
def writing(what: Path | str) -> Iterator[None]:
    """Turns an OSError of the body (a full disk, a missing right) into a UserError about `what`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error.strerror or error}.") from error


_fellows: Callable[[int], int | None] | None = None


def share_failures(tell: Callable[[int], int | None]) -> None:
    """Makes an error here the end of fellow processes too.

    `tell(status)` tells them, and returns the status of one that told before, else None: after
    another's error this process's own is a consequence of it, and is not printed.
    """
    global _fellows
    _fellows = tell


def one_line_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command line: what the user can mend is printed as one line, without a traceback."""

    @functools.wraps(main)
    def command(*args, **kwargs) -> None:
        try:
            main(*args, **kwargs)
        except Stopped:
            sys.exit(START_AGAIN)
        except (Exception, KeyboardInterrupt) as error:
            if isinstance(error, BrokenPipeError):
                # Who read our output has gone, as `head` does; at exit Python would flush into it.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if _fellows is not None or isinstance(error, Hung):
                end_at_once(error)
            if _status(error) == CRASHED:
                raise
            _say(error)
            sys.exit(_status(error))

    return command


def end_at_once(error: BaseException) -> NoReturn:
    """Says an error and ends the process, and its fellows, from whatever thread.

    Without what happens at exit: jax would wait there for processes that wait for this one.
    """
    first = _fellows(_status(error)) if _fellows else None
    if first is None:
        _say(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(_status(error) if first is None else first)


def _status(error: BaseException) -> int:
    if isinstance(error, UserError):
        return error.status
    if isinstance(error, BrokenPipeError):
        return NO_READER
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else CRASHED


def _say(error: BaseException) -> None:
    if isinstance(error, UserError):
        # A file's or a tensor's name may hold what a terminal acts on.
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))
        print(f"error: {line}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    elif not isinstance(error, BrokenPipeError):
        traceback.print_exception(error)
