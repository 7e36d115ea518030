"""How a command ends on an error: one line if the user can fix it, and all processes together."""

import contextlib
import functools
import io
import os
import sys
import traceback
from collections.abc import Callable
from typing import NoReturn

from jtcse_jax.errors import (
    CRASHED,
    INTERRUPTED,
    NO_READER,
    Hung,
    Stopped,
    UserError,
)

_notify_others: Callable[[int], int | None] | None = None


def share_failures(notify_others: Callable[[int], int | None]) -> None:
    """Makes an error in this process end the other processes too.

    `notify_others(status)` returns the status of a process that failed earlier, or None. After an
    earlier failure this process's error is only its consequence and is not printed.
    """
    global _notify_others
    _notify_others = notify_others


def one_line_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command line: an error that the user can fix is printed as one line."""

    @functools.wraps(main)
    def wrapped(*args, **kwargs) -> None:
        _print_every_character()
        try:
            main(*args, **kwargs)
        except Stopped as stopped:
            sys.exit(stopped.status)
        except (Exception, KeyboardInterrupt) as error:
            error = _users_error(error)
            if isinstance(error, BrokenPipeError):
                # The reader of our output has ended, as `head` does; Python would flush at exit.
                os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if _notify_others is not None or isinstance(error, Hung):
                end_at_once(error)
            if _status(error) == CRASHED:
                raise error
            _print(error)
            sys.exit(_status(error))

    return wrapped


def end_at_once(error: BaseException) -> NoReturn:
    """Prints an error and ends this process and the others, from any thread.

    It skips Python's exit handlers: jax would wait there for processes that wait for this one.
    """
    first = _notify_others(_status(error)) if _notify_others else None
    if first is None:
        _print(error)
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):
            stream.flush()
    os._exit(_status(error) if first is None else first)


def _print_every_character() -> None:
    """Makes a console print "?" for a character that it does not have, where Python would raise."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # not so where a test or a notebook reads it
            stream.reconfigure(errors="replace")


def _users_error(error: BaseException) -> BaseException:
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


def _print(error: BaseException) -> None:
    if isinstance(error, UserError):
        # The name of a file or tensor may contain control characters of a terminal.
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))
        print(f"error: {line}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    elif not isinstance(error, BrokenPipeError):
        traceback.print_exception(error)
