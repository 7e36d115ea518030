"""Locks of files, which the system drops when their process ends, however it ends."""

import errno
import fcntl
from typing import IO


def lock_file(file: IO) -> bool:
    """Locks a file until it is closed; False where another process has it.

    Raises OSError where files cannot be locked.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def lock_byte(file: IO, number: int, *, wait: bool) -> bool:
    """Locks a byte of a file until it is closed, or `unlock_byte`; False where another has it.

    With `wait` it is waited for. Raises OSError where files cannot be locked.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def unlock_byte(file: IO, number: int) -> None:
    """Lets others have a byte that `lock_byte` locked."""
    fcntl.lockf(file, fcntl.LOCK_UN, 1, number)
