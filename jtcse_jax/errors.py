"""The one exception for what a user can mend: its message is the whole answer."""

import functools
import sys
from collections.abc import Callable


class UserError(Exception):
    """Bad input, said in one sentence: what is wrong, where, and what to do about it."""


def one_line_errors(main: Callable[..., None]) -> Callable[..., None]:
    """Wraps a command line: a `UserError` is printed as one line and the exit status is 2."""

    @functools.wraps(main)
    def command(*args, **kwargs) -> None:
        try:
            main(*args, **kwargs)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    return command
