"""The one exception for what a user can mend: its message is the whole answer."""

import functools
import os
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input, said in one sentence: what is wrong, where, and what to do about it."""


def one_line_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command line: a `UserError` is printed as one line and the exit status is 2.

    An interrupt (status 130) and a closed pipe (status 141) end it without a traceback too.
    """

    @functools.wraps(main)
    def command(*args, **kwargs) -> None:
        try:
            main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)
        except KeyboardInterrupt:
            print("interrupted", file=sys.stderr)
            sys.exit(130)
        except BrokenPipeError:
            # Whoever read our output has gone, as `head` does; at exit Python would flush into it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(141)

    return command
