"""How a command ends on errors: one line if the user can fix it, and all processes together.

Exit statuses: 1 a crash, with its traceback; 2 bad input (starting again does not help); 75 stopped
on request with everything saved, or waiting for something in use (start again: EX_TEMPFAIL of
sysexits.h); 130 interrupted; 141 nobody reads the output.
"""

import contextlib
import functools
import io
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NoReturn

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


@contextlib.contextmanager
def writing(what: Path | str) -> Iterator[None]:
    """Turns an OSError in the body (full disk, no permission) into a UserError about `what`."""
    try:
        yield
    except OSError as error:
        raise UserError(f"{what} cannot be written: {error.strerror or error}.") from error


_fellows: Callable[[int], int | None] | None = None


def share_failures(tell: Callable[[int], int | None]) -> None:
    """Makes an error in this process end the other processes too.

    `tell(status)` tells them. It returns the status of a process that failed earlier, or None.
    After an earlier failure this process's error is only its consequence and is not printed.
    """
    global _fellows
    _fellows = tell


def one_line_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command line: an error that the user can fix is printed as one line."""

    @functools.wraps(main)
    def command(*args, **kwargs) -> None:
        _show_what_it_can()
        try:
            main(*args, **kwargs)
        except Stopped:
            sys.exit(START_AGAIN)
        except (Exception, KeyboardInterrupt) as error:
            error = _known(error)
            if isinstance(error, BrokenPipeError):
                # The reader of our output has ended, as `head` does; Python would flush at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if _fellows is not None or isinstance(error, Hung):
                end_at_once(error)
            if _status(error) == CRASHED:
                raise error
            _say(error)
            sys.exit(_status(error))

    return command


def end_at_once(error: BaseException) -> NoReturn:
    """Prints an error and ends this process and the others, from any thread.

    It skips Python's exit handlers: jax would wait there for processes that wait for this one.
    """
    first = _fellows(_status(error)) if _fellows else None
    if first is None:
        _say(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(_status(error) if first is None else first)


def _show_what_it_can() -> None:
    """Makes a console print "?" for a character that it does not have, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not so where a test or a notebook reads it
            stream.reconfigure(errors="replace")


def _known(error: BaseException) -> BaseException:
    """The error, or a UserError in its place where the user's environment is the cause."""
    if str(error).startswith("Unable to initialize backend"):  # a RuntimeError of jax
        return UserError(f"JAX_PLATFORMS: {str(error).splitlines()[0]}")
    return error


def _status(error: BaseException) -> int:
    if isinstance(error, UserError):
        return error.status
    if isinstance(error, BrokenPipeError):
        return NO_READER
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else CRASHED


def _say(error: BaseException) -> None:
    if isinstance(error, UserError):
        # The name of a file or tensor may contain control characters of a terminal.
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))
        print(f"error: {line}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    elif not isinstance(error, BrokenPipeError):
        traceback.print_exception(error)
