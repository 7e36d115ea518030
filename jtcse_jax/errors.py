"""How a command ends other than well: in one line where the user can mend it, and in all processes.

Exit statuses: 2 bad input (starting again does not help), 75 stopped on request with everything
saved, or kept from work (start again: EX_TEMPFAIL of sysexits.h), 130 interrupted, 141 nobody reads
the output.
"""

import functools
import os
import sys
import traceback
from collections.abc import Callable

BAD_INPUT, START_AGAIN, INTERRUPTED, NO_READER = 2, 75, 130, 141


class UserError(Exception):
    """Bad input, said in one sentence: what is wrong, where, and what to do about it."""


class Hung(UserError):
    """A thread does not answer, so that the process has to end without waiting for it."""


class Stopped(Exception):
    """The command was asked to stop and has saved what it did; started again it goes on."""


_fellows: Callable[[int], bool] | None = None


def share_failures(first_to_fail: Callable[[int], bool]) -> None:
    """Makes an error here the end of fellow processes too.

    `first_to_fail(status)` tells them, and returns whether none of them has told of an error
    before: if one has, this process's own is a consequence of it, and is not printed.
    """
    global _fellows
    _fellows = first_to_fail


def one_line_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command line: what the user can mend is printed as one line, without a traceback."""

    @functools.wraps(main)
    def command(*args, **kwargs) -> None:
        try:
            main(*args, **kwargs)
        except Stopped:
            sys.exit(START_AGAIN)
        except BrokenPipeError:
            # Whoever read our output has gone, as `head` does; at exit Python would flush into it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(NO_READER)
        except (Exception, KeyboardInterrupt) as error:
            if _fellows is not None or isinstance(error, Hung):
                _end_at_once(error)
            if not isinstance(error, UserError | KeyboardInterrupt):
                raise
            _say(error)
            sys.exit(_status(error))

    return command


def _end_at_once(error: BaseException) -> None:
    """Without what happens at exit: jax would wait there for processes that wait for this one."""
    status = _status(error)
    if _fellows is None or _fellows(status):
        _say(error)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _status(error: BaseException) -> int:
    if isinstance(error, Hung):
        return START_AGAIN
    if isinstance(error, UserError):
        return BAD_INPUT
    return INTERRUPTED if isinstance(error, KeyboardInterrupt) else 1


def _say(error: BaseException) -> None:
    if isinstance(error, UserError):
        # A file's or a tensor's name may hold what a terminal acts on.
        line = "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(error))
        print(f"error: {line}", file=sys.stderr)
    elif isinstance(error, KeyboardInterrupt):
        print("interrupted", file=sys.stderr)
    else:
        traceback.print_exception(error)
