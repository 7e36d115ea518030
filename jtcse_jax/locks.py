"""Locks of files, which the system drops when their process ends, however it ends."""

import errno
import fcntl
import logging
from typing import IO

_log = logging.getLogger(__name__)


def lock_file(file: IO) -> bool:
    """Locks a file until it is closed; False where another process has it.

    Where the file system has no locks, it says so and goes on: True.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        reason = error.strerror or error
        _log.warning("%s cannot be locked (%s): let one process be at it alone", file.name, reason)
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
