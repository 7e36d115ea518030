"""File locks, which the system releases when their process ends, however it ends."""

import errno
import fcntl
import logging
from typing import IO

_log = logging.getLogger(__name__)


def lock_file(file: IO) -> bool:
    """Locks a file until it is closed; False if another process has the lock.

    If the file system has no locks, it logs a warning and returns True.
    """
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        reason = error.strerror or error
        _log.warning("%s cannot be locked (%s): use it from one process only", file.name, reason)
    return True


def lock_byte(file: IO, number: int, *, wait: bool) -> bool:
    """Locks a byte of a file until it is closed or `unlock_byte`; False if another process has it.

    With `wait` it waits for the lock. Raises OSError if files cannot be locked.
    """
    try:
        fcntl.lockf(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB, 1, number)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    return True


def unlock_byte(file: IO, number: int) -> None:
    """Releases a byte that `lock_byte` locked."""
    fcntl.lockf(file, fcntl.LOCK_UN, 1, number)
